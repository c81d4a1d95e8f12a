"""The snapshot of a step from its sums, against Megatron's losses and a loop over tokens."""

from typing import Any

import numpy as np
import pytest
import torch
from megatron.core.transformer.moe.moe_utils import switch_load_balancing_loss_func, z_loss_func

from moe_megatron.errors import ConfigError
from moe_megatron.mcore.measure.counters import StepTotals
from moe_megatron.mcore.measure.snapshots import make_snapshot
from moe_megatron.telemetry.catalog import registered
from moe_megatron.telemetry.quantity import Quantity, StepSums
from moe_megatron.telemetry.values.json_fields import Float64Array

LAYERS, TOKENS, EXPERTS, TOP_K = (2, 4), 50, 6, 2


@pytest.fixture
def logits() -> torch.Tensor:
    """[layer, token, expert]; the second layer prefers its first experts."""
    generator = torch.Generator().manual_seed(3)
    bias = torch.stack((torch.zeros(EXPERTS), torch.linspace(2, -2, EXPERTS)))
    return torch.randn(2, TOKENS, EXPERTS, generator=generator) + bias[:, None]


def totals_of(logits: torch.Tensor) -> StepTotals:
    """What the counters hold after such a step."""
    probs = torch.softmax(logits.double(), -1)
    chosen = torch.zeros_like(probs).scatter(-1, probs.topk(TOP_K, dim=-1).indices, 1.0)
    return StepTotals(
        tokens_per_expert=chosen.sum(1).to(torch.int64).numpy(),
        tokens=np.full(2, TOKENS),
        beyond_top_k=np.zeros(2, np.int64),
        prob_sums=probs.sum(1).numpy(),
        sums={
            "entropy": torch.special.entr(probs).sum((1, 2)).numpy(),
            "z_loss": torch.logsumexp(logits.double(), -1).square().sum(1).numpy(),
        },
        loss=3.0,
    )


def test_losses_equal_those_of_megatron(logits: torch.Tensor) -> None:
    totals = totals_of(logits)
    snapshot = make_snapshot(9, LAYERS, TOP_K, totals)
    for layer in range(2):
        aux_loss = switch_load_balancing_loss_func(
            probs=torch.softmax(logits[layer], -1),
            tokens_per_expert=torch.from_numpy(totals.tokens_per_expert[layer]),
            total_num_tokens=TOKENS,
            topk=TOP_K,
            num_experts=EXPERTS,
            moe_aux_loss_coeff=1.0,
        )
        assert snapshot.per_layer["aux_loss"][layer] == pytest.approx(aux_loss.item(), rel=1e-5)
        z_loss = z_loss_func(logits[layer], 1.0)
        assert snapshot.per_layer["z_loss"][layer] == pytest.approx(float(z_loss), rel=1e-5)
    assert snapshot.per_layer["aux_loss"][1] > snapshot.per_layer["aux_loss"][0]


def test_values_equal_a_loop_over_tokens(logits: torch.Tensor) -> None:
    snapshot = make_snapshot(9, LAYERS, TOP_K, totals_of(logits))
    assert (snapshot.step, snapshot.tokens, snapshot.top_k) == (9, TOKENS, TOP_K)
    assert snapshot.layers == LAYERS
    for layer in range(2):
        counts, mean_prob, entropy = np.zeros(EXPERTS, int), np.zeros(EXPERTS), 0.0
        for token in range(TOKENS):
            weights = np.exp(logits[layer, token].double().numpy())
            probs = weights / weights.sum()
            for expert in sorted(range(EXPERTS), key=lambda e, p=probs: -p[e])[:TOP_K]:
                counts[expert] += 1
            mean_prob += probs / TOKENS
            entropy -= sum(p * np.log(p) for p in probs) / TOKENS
        assert snapshot.tokens_per_expert[layer].tolist() == counts.tolist()
        assert snapshot.per_layer["entropy"][layer] == pytest.approx(entropy)
        loss = EXPERTS * sum(counts / (TOKENS * TOP_K) * mean_prob)
        assert snapshot.per_layer["aux_loss"][layer] == pytest.approx(loss)
    assert snapshot.dropped.tolist() == [0, 0]


def test_perfect_balance_is_one() -> None:
    totals = totals_of(torch.eye(EXPERTS).repeat(1, 1)[None].expand(2, -1, -1))
    even = StepTotals(
        tokens_per_expert=np.full((2, EXPERTS), 2),
        tokens=np.full(2, EXPERTS),
        beyond_top_k=np.zeros(2, np.int64),
        prob_sums=np.ones((2, EXPERTS)),
        sums=totals.sums,
        loss=None,
    )
    snapshot = make_snapshot(1, LAYERS, TOP_K, even)
    assert snapshot.per_layer["aux_loss"] == pytest.approx(np.ones(2))


def test_what_did_not_reach_an_expert_was_dropped(logits: torch.Tensor) -> None:
    totals = totals_of(logits)
    totals.tokens_per_expert[1, 0] -= 7
    snapshot = make_snapshot(1, LAYERS, TOP_K, totals)
    assert snapshot.dropped.tolist() == [0, 7]
    assert (snapshot.tokens_per_expert.sum(1) + snapshot.dropped == TOKENS * TOP_K).all()


def test_step_without_tokens_has_finite_values() -> None:
    empty = StepTotals(
        tokens_per_expert=np.zeros((2, EXPERTS), np.int64),
        tokens=np.zeros(2, np.int64),
        beyond_top_k=np.zeros(2, np.int64),
        prob_sums=np.zeros((2, EXPERTS)),
        sums={"entropy": np.zeros(2), "z_loss": np.zeros(2)},
        loss=None,
    )
    snapshot = make_snapshot(1, LAYERS, TOP_K, empty)
    assert snapshot.tokens == 0
    assert list(snapshot.per_layer) == ["entropy", "aux_loss", "z_loss"]
    assert all(values.tolist() == [0.0, 0.0] for values in snapshot.per_layer.values())


def test_assignments_beyond_top_k_are_conserved(logits: torch.Tensor) -> None:
    """In the second layer the router asked for 9 more than top_k a token, and 4 reached nobody."""
    totals = totals_of(logits)
    totals.beyond_top_k[1] = 9
    totals.tokens_per_expert[1, -1] += 5
    snapshot = make_snapshot(1, LAYERS, TOP_K, totals)
    assert snapshot.assigned.tolist() == [TOKENS * TOP_K, TOKENS * TOP_K + 9]
    assert snapshot.dropped.tolist() == [0, 4]
    assert snapshot.experts_per_token.tolist() == [TOP_K, TOP_K + 9 / TOKENS]


def test_more_reached_than_asked_for_is_our_mistake(logits: torch.Tensor) -> None:
    totals = totals_of(logits)
    totals.tokens_per_expert[0, 0] += 1
    with pytest.raises(AssertionError, match=r"more .* experts, \[101 100\], than .*\[100 100\]"):
        make_snapshot(1, LAYERS, TOP_K, totals)


def test_derived_quantity_sees_the_sums_of_the_step(logits: torch.Tensor) -> None:
    totals = totals_of(logits)

    def perplexity(sums: StepSums) -> Float64Array:
        assert (sums.tokens, sums.top_k) == (TOKENS, TOP_K)
        assert sums.assigned.tolist() == [TOKENS * TOP_K] * 2
        return np.exp(sums.means["entropy"])

    added = Quantity(name="choices", help="For a test.", title="Choices", derive=perplexity)
    with registered(added):
        snapshot = make_snapshot(1, LAYERS, TOP_K, totals)
    assert [*snapshot.per_layer] == ["entropy", "aux_loss", "z_loss", "choices"]
    expected = np.exp(totals.sums["entropy"] / TOKENS)
    assert snapshot.per_layer["choices"] == pytest.approx(expected)


@pytest.mark.parametrize("value", [np.zeros(3), np.zeros(2, np.float32), 1.5])
def test_derived_quantity_of_another_shape_is_refused(logits: torch.Tensor, value: Any) -> None:
    wrong = Quantity(name="odd", help="For a test.", title="Odd", derive=lambda sums: value)
    with pytest.raises(ConfigError, match=r"'odd' must be derived as one value .* \[2\]"):
        make_snapshot(1, LAYERS, TOP_K, totals_of(logits), [wrong])
