"""Megatron's functions of routing and permutation: ours in place, and the originals behind them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("moe_megatron.mcore")

from megatron.core.transformer.moe import moe_utils, router, token_dispatcher

from moe_megatron.mcore.cpu import emulation
from moe_megatron.mcore.cpu.fast.kernels import routing, rows

pytestmark = pytest.mark.skipif(not emulation.is_installed(), reason="Megatron has a GPU")

TOKENS, EXPERTS, TOP_K, HIDDEN = 48, 8, 2, 24


def original(ours: Callable[..., Any]) -> Callable[..., Any]:
    """Megatron's function, which ours holds."""
    held = dict(zip(ours.__code__.co_freevars, ours.__closure__ or (), strict=True))
    found: Callable[..., Any] = held["original"].cell_contents
    return found


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(8))


def test_megatron_calls_ours() -> None:
    for module, names in (
        (router, ("z_loss_func", "topk_routing_with_score_function")),
        (router, ("compute_routing_scores_for_aux_loss",)),
        (token_dispatcher, ("permute", "unpermute")),
    ):
        for name in names:
            assert getattr(module, name) is getattr(moe_utils, name)
            assert "moe_megatron" in getattr(module, name).__module__


ROUTING = {
    "z loss": lambda f, x: (f("z_loss_func")(x, 1e-3),),
    "z loss with padding": lambda f, x: (f("z_loss_func")(x, 1e-3, padding_mask=x[:, 0] > 0),),
    "top k": lambda f, x: f("topk_routing_with_score_function")(x, TOP_K),
    "sigmoid": lambda f, x: f("topk_routing_with_score_function")(
        x, TOP_K, score_function="sigmoid", expert_bias=torch.linspace(-1, 1, EXPERTS)
    ),
    "softmax first": lambda f, x: f("topk_routing_with_score_function")(
        x, TOP_K, use_pre_softmax=True
    ),
    "groups": lambda f, x: f("topk_routing_with_score_function")(
        x, TOP_K, num_groups=4, group_topk=2
    ),
    "scaled": lambda f, x: f("topk_routing_with_score_function")(x, TOP_K, scaling_factor=2.5),
    "dense": lambda f, x: f("topk_routing_with_score_function")(x, TOP_K, dense_output=True),
    "given": lambda f, x: f("topk_routing_with_score_function")(
        x, TOP_K, precomputed_indices=torch.tensor([[0, 3]]).expand(TOKENS, -1)
    ),
    "aux": lambda f, x: f("compute_routing_scores_for_aux_loss")(x, TOP_K, "softmax"),
    "aux with padding": lambda f, x: f("compute_routing_scores_for_aux_loss")(
        x, TOP_K, "softmax", padding_mask=x[:, 0] > 0
    ),
    "aux of sigmoid": lambda f, x: f("compute_routing_scores_for_aux_loss")(x, TOP_K, "sigmoid"),
}


def with_gradient(
    compute: Callable[..., Any], find: Callable[[str], Callable[..., Any]], dtype: torch.dtype
) -> list[torch.Tensor]:
    """Results of a computation, and the gradient of the logits."""
    logits = numbers(TOKENS, EXPERTS).to(dtype).requires_grad_()
    results = [x for x in compute(find, logits) if x is not None]
    loss = sum((x * numbers(*x.shape, 1).squeeze(-1)).sum() for x in results if x.grad_fn)
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    assert logits.grad is not None
    return [*(x.detach() for x in results), logits.grad]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("case", ROUTING)
@pytest.mark.parametrize("compiled", [True, False], ids=["C", "no C"])
def test_routing_is_megatrons(
    case: str, dtype: torch.dtype, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(routing, "_compiled", lambda: None)
    ours = with_gradient(ROUTING[case], lambda name: getattr(moe_utils, name), dtype)
    theirs = with_gradient(ROUTING[case], lambda name: original(getattr(moe_utils, name)), dtype)
    for a, b in zip(ours, theirs, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.double().abs().max()))


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("with_probs", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("compiled", [True, False], ids=["C", "no C"])
def test_permutation_is_megatrons(
    top_k: int,
    with_probs: bool,
    dtype: torch.dtype,
    compiled: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not compiled:
        monkeypatch.setattr(rows, "_compiled", lambda: None)
    weights, chosen = moe_utils.topk_routing_with_score_function(numbers(TOKENS, EXPERTS), top_k)
    chosen[:5] = False  # Dropped tokens.

    def outcome(permute: Any, unpermute: Any) -> list[torch.Tensor]:
        tokens = numbers(TOKENS, HIDDEN).to(dtype).requires_grad_()
        probs = weights.clone().requires_grad_()
        placed, placed_probs, order, _, _ = permute(
            tokens,
            chosen,
            probs=probs if with_probs else None,
            num_out_tokens=chosen.sum(),
        )
        back = unpermute(placed * 3, order, restore_shape=tokens.shape, routing_map=chosen)
        results = [placed, back, *([placed_probs] if with_probs else [])]
        sum((x.double() ** 2).sum() for x in results).backward()
        gradients = [x.grad for x in (tokens, probs) if x.grad is not None]
        return [x.detach() for x in (*results, order, *gradients)]

    ours = outcome(moe_utils.permute, moe_utils.unpermute)
    theirs = outcome(original(moe_utils.permute), original(moe_utils.unpermute))
    for a, b in zip(ours, theirs, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        torch.testing.assert_close(a, b)


def test_buffers_of_a_capacity_are_left_to_megatron() -> None:
    """There an expert's rows are filled up, with tokens that it did not choose."""
    capacity = TOKENS * TOP_K // EXPERTS
    weights, chosen = moe_utils.topk_routing_with_score_function(numbers(TOKENS, EXPERTS), TOP_K)
    arguments = {
        "probs": weights,
        "num_out_tokens": capacity * EXPERTS,
        "drop_and_pad": True,
    }
    tokens = numbers(TOKENS, HIDDEN)
    ours = moe_utils.permute(tokens, chosen, **arguments)
    theirs = original(moe_utils.permute)(tokens, chosen, **arguments)
    for a, b in zip(ours[:3], theirs[:3], strict=True):
        assert torch.equal(a, b)
    back = {"restore_shape": tokens.shape, "drop_and_pad": True, "routing_map": chosen}
    assert torch.equal(
        moe_utils.unpermute(ours[0], ours[2], **back),
        original(moe_utils.unpermute)(theirs[0], theirs[2], **back),
    )
