"""Attention over a context group against attention to the same sequences on one rank."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.utils import get_batch_on_this_cp_rank

from moe_megatron.errors import ConfigError
from moe_megatron.mcore.layers.context_attention import ContextAttention
from moe_megatron.mcore.layers.local_attention import LocalAttention
from moe_megatron.testing.distributed import run_distributed

WIDTH, HEADS, BATCH, LENGTH = 8, 4, 2, 48

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped": {"num_query_groups": 2},
    "narrow_values": {"value_width": 5},
    "window": {"window_size": (6, 0)},
    "grouped_window": {"window_size": (30, 0), "num_query_groups": 1},
    "off_by_one": {"softmax_type": "off-by-one"},
    "sinks": {"softmax_type": "learnable", "num_query_groups": 2},
    "scaled_by_layer": {"apply_query_key_layer_scaling": True, "attention_softmax_in_fp32": True},
    "plain_bf16": {"bf16": True, "params_dtype": torch.bfloat16},
}


def build(context_size: int, value_width: int = WIDTH, **fields: Any) -> LocalAttention:
    config = TransformerConfig(
        num_layers=1,
        hidden_size=WIDTH * HEADS,
        num_attention_heads=HEADS,
        context_parallel_size=context_size,
        **{"attention_dropout": 0.0, "masked_softmax_fusion": False, **fields},
    )
    tensor_parallel.model_parallel_cuda_manual_seed(7)
    groups = ProcessGroupCollection.use_mpu_process_groups(["tp", "cp"])
    kind = LocalAttention if context_size == 1 else ContextAttention
    attention = kind(config, 3, AttnMaskType.causal, "self", pg_collection=groups)
    for parameter in attention.parameters():  # sinks
        torch.nn.init.constant_(parameter, 0.5)
    return attention


def inputs(fields: Mapping[str, Any]) -> list[torch.Tensor]:
    torch.manual_seed(3)
    groups, width = fields.get("num_query_groups", HEADS), fields.get("value_width", WIDTH)
    shapes = [(HEADS, WIDTH), (groups, WIDTH), (groups, width)]
    dtype = fields.get("params_dtype", torch.float32)
    return [torch.randn(LENGTH, BATCH, *shape).to(dtype) for shape in shapes]


def on_this_rank(whole: torch.Tensor) -> torch.Tensor:
    """Megatron's share of a sequence, whose first dimension is the sequence."""
    group = parallel_state.get_context_parallel_group()
    batch = {"tokens": whole.transpose(0, 1)}
    return get_batch_on_this_cp_rank(batch, False, cp_group=group)["tokens"].transpose(0, 1)


def outcome(
    attention: LocalAttention,
    x: list[torch.Tensor],
    share: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Output and input gradients of one rank's share, and the gradients of parameters."""
    own = [share(tensor).detach().requires_grad_() for tensor in x]
    output = attention(*own, None, attn_mask_type=AttnMaskType.causal)
    width = output.shape[-1]
    weights = torch.linspace(-1, 1, LENGTH * BATCH * width).view(LENGTH, BATCH, width)
    output.backward(share(weights).to(output.dtype))
    values = [output.detach(), *(tensor.grad for tensor in own)]
    return values, [parameter.grad for parameter in attention.parameters()]


def compare(context_sizes: tuple[int, ...]) -> None:
    """Compare every case on every rank, in groups of several sizes."""
    dist.init_process_group("gloo")
    for size in context_sizes:
        parallel_state.initialize_model_parallel(context_parallel_size=size)
        for name, fields in CASES.items():
            expected, whole_grads = outcome(build(1, **fields), inputs(fields), lambda x: x)
            found, grads = outcome(build(size, **fields), inputs(fields), on_this_rank)
            shares = [on_this_rank(tensor) for tensor in expected]
            tolerance = {"rtol": 0.02, "atol": 0.02} if "bf16" in name else {}
            said = partial("{}: {}".format, name)
            torch.testing.assert_close(found, shares, msg=said, **tolerance)
            for grad, whole in zip(grads, whole_grads, strict=True):
                dist.all_reduce(grad, group=parallel_state.get_context_parallel_group())
                torch.testing.assert_close(grad, whole)
        parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


@pytest.mark.distributed
def test_every_kind_of_attention_equals_that_of_one_rank() -> None:
    run_distributed(compare, (2, 4), world_size=4)


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"attention_mask": torch.zeros(1, 1, 8, 8, dtype=torch.bool)}, "causal"),
        ({"attn_mask_type": AttnMaskType.no_mask}, "no_mask"),
        ({"attention_bias": torch.zeros(1)}, "causal"),
        ({"packed_seq_params": object()}, "causal"),
    ],
)
def test_other_masks_are_refused_with_the_kind_and_the_remedy(
    arguments: dict[str, Any], kind: str
) -> None:
    attention, x = build(2), torch.zeros(8, BATCH, HEADS, WIDTH)
    with pytest.raises(ConfigError) as error:
        attention(x, x, x, **{"attention_mask": None, **arguments})
    assert str(error.value) == (
        f"attention with a mask of kind '{kind}', a mask or bias of its own, or packed sequences "
        "cannot be split by context_parallel_size (1) without Transformer Engine, only plain "
        "causal attention can; set context_parallel_size to 1."
    )


@pytest.mark.usefixtures("world")
def test_parameters_have_the_names_they_have_without_a_context_group() -> None:
    kinds = [build(size, softmax_type="learnable") for size in (1, 2)]
    first, second = ([*kind.state_dict()] for kind in kinds)
    assert first == second == ["softmax_offset"]
