"""Causal attention in blocks against Megatron's own, which is its slow, obvious twin."""

from typing import Any

import pytest
import torch
from megatron.core import tensor_parallel
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.enums import AttnMaskType

from moe_megatron.mcore.cpu.fast.causal_attention import CausalAttention
from moe_megatron.mcore.layers.local_attention import LocalAttention

WIDTH, HEADS, BATCH = 8, 4, 2

pytestmark = [
    pytest.mark.usefixtures("world"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="it serves machines without a GPU"),
]


def build(kind: type[DotProductAttention], **fields: Any) -> DotProductAttention:
    config = TransformerConfig(
        num_layers=1,
        hidden_size=WIDTH * HEADS,
        num_attention_heads=HEADS,
        **{"attention_dropout": 0.0, "masked_softmax_fusion": False, **fields},
    )
    tensor_parallel.model_parallel_cuda_manual_seed(7)
    return kind(config, 1, AttnMaskType.causal, "self")


def inputs(length: int, groups: int = HEADS, dtype: torch.dtype = torch.float32) -> list[Any]:
    torch.manual_seed(3)
    shapes = [(length, BATCH, heads, WIDTH) for heads in (HEADS, groups, groups)]
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


def outcome(attention: DotProductAttention, x: list[Any]) -> list[torch.Tensor]:
    """Output and the gradients of query, key and value."""
    output = attention(*x, None, attn_mask_type=AttnMaskType.causal)
    weights = torch.linspace(-1, 1, output.numel()).view_as(output).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, x, weights)]


@pytest.mark.parametrize("length", [1, 5, 64, 65, 130])
@pytest.mark.parametrize("groups", [HEADS, 2])
def test_output_and_gradients_equal_those_of_megatron(length: int, groups: int) -> None:
    fields = {"num_query_groups": groups}
    x = inputs(length, groups)
    ours = outcome(build(LocalAttention, **fields), x)
    theirs = outcome(build(DotProductAttention, **fields), x)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_values_of_another_width_equal_an_explicit_softmax() -> None:
    """Latent attention: wide queries and keys, narrow values."""
    config = TransformerConfig(
        num_layers=1, hidden_size=WIDTH * HEADS, num_attention_heads=HEADS, attention_dropout=0.0
    )
    tensor_parallel.model_parallel_cuda_manual_seed(7)
    attention = LocalAttention(
        config, 1, AttnMaskType.causal, "self", softmax_scale=0.3, k_channels=WIDTH, v_channels=5
    )
    query, key, value = inputs(70)
    value = value.detach()[..., :5].contiguous().requires_grad_()
    ours = outcome(attention, [query, key, value])
    scores = torch.einsum("qbhd,kbhd->bhqk", query, key) * 0.3
    scores += torch.full((70, 70), -torch.inf).triu(1)
    output = torch.einsum("bhqk,kbhd->qbhd", scores.softmax(-1), value).reshape(70, BATCH, -1)
    weights = torch.linspace(-1, 1, output.numel()).view_as(output)
    theirs = [output.detach(), *torch.autograd.grad(output, [query, key, value], weights)]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_bf16_is_as_close_to_fp32_as_bf16_can_be() -> None:
    exact = outcome(build(LocalAttention), inputs(200))
    rounded = outcome(
        build(LocalAttention, bf16=True, params_dtype=torch.bfloat16),
        inputs(200, dtype=torch.bfloat16),
    )
    for ours, reference in zip(rounded, exact, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.float() - reference).norm() < 0.02 * reference.norm()


@pytest.mark.parametrize("fields", [{"attention_dropout": 0.1}, {"window_size": (16, 0)}])
def test_what_it_does_not_compute_is_left_to_megatron(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        pytest.fail("the fast path was taken")

    monkeypatch.setattr(CausalAttention, "apply", refuse)
    attention = build(LocalAttention, **fields).train()
    called = []
    monkeypatch.setattr(
        DotProductAttention, "forward", lambda *args, **kwargs: called.append(args) or args[1]
    )
    attention(*inputs(4), None, attn_mask_type=AttnMaskType.causal)
    assert len(called) == 1


@pytest.mark.parametrize("case", ["mask", "no mask type", "cached keys"])
def test_other_masks_and_lengths_are_left_to_megatron(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    monkeypatch.setattr(
        DotProductAttention, "forward", lambda *args, **kwargs: called.append(args) or args[1]
    )
    attention, (query, key, value) = build(LocalAttention), inputs(4)
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.bool) if case == "mask" else None
    kind = AttnMaskType.no_mask if case == "no mask type" else AttnMaskType.causal
    query = query[-1:] if case == "cached keys" else query
    attention(query, key, value, mask, attn_mask_type=kind)
    assert len(called) == 1


def test_it_adds_nothing_to_a_checkpoint() -> None:
    assert list(build(LocalAttention).state_dict()) == []
