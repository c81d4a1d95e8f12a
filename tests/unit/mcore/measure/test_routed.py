"""What measures of quantities get, and what is counted, against loops over tokens."""

import math
from collections.abc import Callable

import pytest
import torch

from moe_megatron.config import MoEConfig
from moe_megatron.errors import ConfigError
from moe_megatron.mcore.measure.counters import RoutingCounters, RoutingRow
from moe_megatron.mcore.measure.routed import Routed, count
from moe_megatron.routing import BoundRouter, bind
from moe_megatron.telemetry.quantity import Measure, Quantity

TOKENS, EXPERTS, TOP_K = 12, 5, 2
SCORES: dict[str, Callable[[float], float]] = {
    "softmax": math.exp,
    "sigmoid": lambda z: 1 / (1 + math.exp(-z)),
    "sqrtsoftplus": lambda z: math.sqrt(math.log(1 + math.exp(z))),
}


@pytest.fixture
def logits_TE(device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(TOKENS, EXPERTS, generator=generator).to(device)


def route_of(score_function: str) -> BoundRouter:
    return bind(MoEConfig(num_experts=EXPERTS, router={"score_function": score_function}))


def routed_of(
    logits_TE: torch.Tensor,
    score_function: str = "softmax",
    assigned_map_TE: torch.Tensor | None = None,
) -> Routed:
    """What a top-k router without limits does."""
    chosen = logits_TE.topk(TOP_K).indices
    map_TE = torch.zeros_like(logits_TE, dtype=torch.bool).scatter(1, chosen, True)
    return Routed(
        logits_TE,
        torch.where(map_TE, 0.5, 0.0),
        map_TE if assigned_map_TE is None else assigned_map_TE,
        route=route_of(score_function),
        assigned_map_TE=assigned_map_TE,
    )


def measured(name: str, measure: Measure) -> Quantity:
    return Quantity(name=name, help="For a test.", title=name, measure=measure)


def row_with(device: torch.device, *quantities: Quantity) -> RoutingRow:
    return RoutingCounters((1,), EXPERTS, device, quantities).row(1)


@pytest.mark.parametrize("score_function", SCORES)
def test_values_equal_a_loop_over_tokens(logits_TE: torch.Tensor, score_function: str) -> None:
    routed = routed_of(logits_TE, score_function)
    for token, logits in enumerate(logits_TE.tolist()):
        total = sum(map(math.exp, logits))
        scores = [SCORES[score_function](z) for z in logits]
        scores = [score / sum(scores) for score in scores]
        softmax = [z - math.log(total) for z in logits]
        assert routed.log_softmax_TE[token].tolist() == pytest.approx(softmax, abs=1e-6)
        assert routed.logsumexp_T[token].item() == pytest.approx(math.log(total), abs=1e-6)
        assert routed.scores_TE[token].tolist() == pytest.approx(scores, abs=1e-6)
        entropy = -sum(p * math.log(p) for p in scores)
        assert routed.entropy_T[token].item() == pytest.approx(entropy, abs=1e-6)


def test_shared_values_are_computed_once(logits_TE: torch.Tensor) -> None:
    routed = routed_of(logits_TE)
    for name in ("log_softmax_TE", "logsumexp_T", "scores_TE", "entropy_T"):
        assert name not in vars(routed)
        assert getattr(routed, name) is getattr(routed, name)


def test_registered_measure_is_summed_over_tokens_and_micro_batches(
    logits_TE: torch.Tensor,
) -> None:
    def margin(routed: Routed) -> torch.Tensor:
        best = routed.scores_TE.topk(2).values
        return best[:, 0] - best[:, 1]

    row = row_with(logits_TE.device, measured("margin", margin))
    expected = 0.0
    for scale in (1.0, 2.0):
        count(row, routed_of(scale * logits_TE))
        for logits in logits_TE.tolist():
            first, second, *_ = sorted((math.exp(scale * z) for z in logits), reverse=True)
            expected += (first - second) / sum(math.exp(scale * z) for z in logits)
    assert row.sums[0].dtype == torch.float64
    assert row.sums[0].item() == pytest.approx(expected, rel=1e-6)
    assert row.tokens.item() == 2 * TOKENS


def test_padding_counts_nowhere_even_where_a_measure_is_not_finite(
    logits_TE: torch.Tensor,
) -> None:
    padding_T = torch.arange(TOKENS, device=logits_TE.device) % 3 == 0

    def reached(routed: Routed) -> torch.Tensor:
        return routed.routing_map_TE.sum(dim=-1).float().masked_fill(padding_T, math.nan)

    assigned_map_TE = torch.ones_like(logits_TE, dtype=torch.bool)
    row = row_with(logits_TE.device, measured("reached", reached))
    count(row, routed_of(logits_TE, assigned_map_TE=assigned_map_TE), padding_T)
    valid = int((~padding_T).sum())
    assert row.tokens.item() == valid == 8
    assert row.sums[0].item() == row.tokens_per_expert.sum().item() == valid * EXPERTS
    assert row.beyond_top_k.item() == valid * (EXPERTS - TOP_K)


def test_different_numbers_of_experts_a_token_are_counted_before_dropping(
    logits_TE: torch.Tensor,
) -> None:
    """Token t asks for t modulo 4 experts; what asks for the first one is dropped."""
    number = torch.arange(TOKENS, device=logits_TE.device)[:, None] % 4
    assigned_map_TE = torch.arange(EXPERTS, device=logits_TE.device)[None] < number
    kept_map_TE = assigned_map_TE.clone()
    kept_map_TE[:, 0] = False
    row = row_with(logits_TE.device)
    count(
        row,
        Routed(
            logits_TE, kept_map_TE.float(), kept_map_TE,
            route=route_of("softmax"), assigned_map_TE=assigned_map_TE,
        ),
    )  # fmt: skip
    assigned = sum(t % 4 for t in range(TOKENS))
    assert row.beyond_top_k.item() == assigned - TOKENS * TOP_K
    assert row.tokens_per_expert.tolist() == [0, 6, 3, 0, 0]


def test_fixed_number_of_experts_leaves_its_counter_alone(logits_TE: torch.Tensor) -> None:
    row = row_with(logits_TE.device)
    count(row, routed_of(logits_TE))
    assert row.beyond_top_k.item() == 0


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        (lambda routed: routed.routing_map_TE[:, 0], None),
        (lambda routed: routed.scores_TE[:, 0].bfloat16(), 1e-2),
        (lambda routed: routed.scores_TE[:, 0].double(), 1e-6),
    ],
    ids=["bool", "bf16", "fp64"],
)
def test_measure_may_have_any_type(
    logits_TE: torch.Tensor, measure: Measure, expected: float | None
) -> None:
    row = row_with(logits_TE.device, measured("first", measure))
    routed = routed_of(logits_TE)
    count(row, routed)
    exact = measure(routed).double().sum().item()
    assert row.sums[0].item() == pytest.approx(exact, rel=expected or 0.0)
    wide = measure(routed).float() if expected == 1e-2 else measure(routed)
    assert row.sums[0].item() == wide.sum().item()


@pytest.mark.parametrize(
    ("measure", "found"),
    [
        (lambda routed: routed.scores_TE, r"\[12, 5\]"),
        (lambda routed: routed.entropy_T.sum(), r"\[\]"),
        (lambda routed: 0.5, "a float"),
    ],
)
def test_measure_that_gives_no_value_a_token_is_refused(
    logits_TE: torch.Tensor, measure: Measure, found: str
) -> None:
    row = row_with(logits_TE.device, measured("odd", measure))
    with pytest.raises(ConfigError, match=rf"'odd' must return one value .* returned {found}\."):
        count(row, routed_of(logits_TE))
