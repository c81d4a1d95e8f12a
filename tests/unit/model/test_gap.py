"""What routing as in training gains on a batch is measured, and is nothing for causal routers."""

from typing import Any

import pytest
import torch
from torch import Tensor

from moe_megatron.errors import ConfigError, DataError
from moe_megatron.model import MoEModel, causal_gap
from moe_megatron.model.attention import KeyValueCache
from moe_megatron.model.inputs import next_token_loss
from moe_megatron.routing import Routing, find_router, registered_router
from tests.built_in import ROUTERS


@pytest.fixture
def tokens() -> Tensor:
    """int64 [3, 12] token ids."""
    return torch.randint(0, 61, (3, 12), generator=torch.Generator().manual_seed(5))


def token_by_token(model: MoEModel, tokens: Tensor) -> float:
    """The slow, obvious twin: every sequence alone, with the cache of generation."""
    rows = []
    for row in tokens:
        cache = KeyValueCache()
        rows.append(
            torch.stack([model._next_logits(it.view(1, 1), None, cache) for it in row], dim=1)
        )
    return float(next_token_loss(torch.cat(rows), tokens, None))


OPTIONS = {"sparse_mixer": {"jitter": 0.5}}
"""With little, it samples among one expert where first weights are as they are."""


@pytest.mark.parametrize("router", ROUTERS)
def test_inference_is_what_generation_computes(router: str, build: Any, tokens: Tensor) -> None:
    model = build(router_type=router, capacity_factor=1.0)
    gap = causal_gap(model, tokens)
    with torch.no_grad():
        assert gap.inference_loss == pytest.approx(token_by_token(model.eval(), tokens), rel=1e-5)


@pytest.mark.parametrize("router", ROUTERS)
def test_training_is_what_a_training_pass_computes(router: str, build: Any, tokens: Tensor) -> None:
    model = build(router_type=router, router=OPTIONS.get(router, {}))
    torch.manual_seed(3)
    expected = model.train()(tokens, labels=tokens).lm_loss.item()
    gap = causal_gap(model, tokens, seed=3)
    assert gap.training_loss == pytest.approx(expected, rel=1e-6)
    it = find_router(router)
    if not it.random and it.batch_dependent is False:
        assert (gap.difference, gap.changed) == (0.0, 0.0)
    else:
        assert gap.changed > 0
        assert gap.difference != 0


def test_full_experts_and_jitter_make_a_gap(build: Any, tokens: Tensor) -> None:
    full = causal_gap(build(capacity_factor=0.5), tokens)
    # Some tokens lose an expert in training, and none does at inference.
    assert 0 < full.changed_by_layer[1] < 1
    assert causal_gap(build(input_jitter=0.3), tokens).difference != 0


def looks_around(logits_TE: Tensor, *, top_k: int) -> Routing:
    scores_TE = logits_TE - logits_TE.mean(dim=0)
    weights_TK, indices_TK = scores_TE.softmax(-1).topk(top_k)
    return Routing.of_indices(indices_TK, weights_TK, logits_TE.shape[-1])


def test_a_router_that_always_looks_at_its_batch_is_used_token_by_token(
    build: Any, tokens: Tensor
) -> None:
    with registered_router("around", looks_around, batch_dependent=True):
        model = build(router_type="around")
        gap = causal_gap(model, tokens)
        with torch.no_grad():
            alone = token_by_token(model.eval(), tokens)
            together = float(model(tokens, labels=tokens).lm_loss)
    assert gap.inference_loss == pytest.approx(alone, rel=1e-5)
    assert gap.training_loss == pytest.approx(together, rel=1e-6)
    assert gap.changed > 0


def test_padding_is_in_neither_loss(build: Any, tokens: Tensor) -> None:
    model = build(router_type="expert_choice")
    mask = torch.ones_like(tokens)
    mask[:, 9:] = 0
    one = causal_gap(model, tokens, mask)
    two = causal_gap(model, tokens[:, :9])
    assert one.training_loss == pytest.approx(two.training_loss, rel=1e-5)
    assert one.inference_loss == pytest.approx(two.inference_loss, rel=1e-5)
    assert one.changed == pytest.approx(two.changed)


def test_nothing_is_left_behind(build: Any, tokens: Tensor) -> None:
    model = build(router_type="noisy_top_k", capacity_factor=1.0).train()
    model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    before = torch.get_rng_state()
    one, two = causal_gap(model, tokens), causal_gap(model, tokens)
    assert one == two
    assert torch.equal(before, torch.get_rng_state())
    assert [module.training for module in model.modules()] == modes
    assert model.layers[0].moe.router.config.capacity_factor == 1.0
    assert all(it.grad is None for it in model.parameters())


def test_what_has_no_gap_is_refused(build: Any, tokens: Tensor) -> None:
    with pytest.raises(ConfigError, match="a dense model routes nothing"):
        causal_gap(build(num_experts=None), tokens)
    with pytest.raises(ConfigError, match="measured of a MoEModel, not of"):
        causal_gap("model", tokens)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="input_ids must be a tensor"):
        causal_gap(build(), [[1, 2]])  # type: ignore[arg-type]
