"""Noise on the input of routers is that of one process where ranks share a micro-batch."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from moe_megatron.config import MoEConfig
from moe_megatron.routing import bind
from moe_megatron.testing.distributed import run_distributed
from tests.functional.test_losses_under_layouts import (
    BATCH,
    EXPERTS,
    HIDDEN,
    LAYOUTS,
    SEQUENCE,
    Layout,
    part_of,
)

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]

AMOUNT = 0.3


def routed(layout: Layout) -> tuple[Tensor, Tensor]:
    """Of the tokens of this rank, their places in the micro-batch, and their noise."""
    import moe_megatron.mcore  # noqa: F401, I001  # before Megatron
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from megatron.core.transformer import TransformerConfig
    from megatron.core.transformer.moe.moe_utils import get_default_pg_collection

    from moe_megatron.mcore.layers.measured_router import MeasuredRouter

    dist.init_process_group("gloo")
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor, context_parallel_size=layout.context
    )
    model_parallel_cuda_manual_seed(1)
    config = TransformerConfig(
        num_layers=1, hidden_size=HIDDEN, num_attention_heads=2, num_moe_experts=EXPERTS,
        add_bias_linear=False, moe_input_jitter_eps=AMOUNT,
        tensor_model_parallel_size=layout.tensor, sequence_parallel=layout.tensor > 1,
        context_parallel_size=layout.context,
    )  # fmt: skip
    route = bind(MoEConfig(num_experts=EXPERTS))
    router = MeasuredRouter(config, get_default_pg_collection(), route=route).train()
    places = torch.arange(SEQUENCE * BATCH).view(SEQUENCE, BATCH)
    (mine,) = part_of(layout, places)
    torch.manual_seed(5)
    return mine, router.apply_input_jitter(torch.ones(*mine.shape, HIDDEN))


def noise_of(layout: str) -> Tensor:
    """That of every token of the micro-batch, put together."""
    whole = torch.full((SEQUENCE * BATCH, HIDDEN), torch.nan)
    for places, noise in run_distributed(routed, LAYOUTS[layout], world_size=LAYOUTS[layout].ranks):
        whole[places.flatten()] = noise.flatten(0, 1)
    return whole


@pytest.mark.parametrize(
    "layout",
    [*(pytest.param(it, marks=pytest.mark.deep) for it in ("tp2", "cp2")), "tp2-cp2"],
)
def test_noise_is_that_of_one_process(layout: str) -> None:
    one = noise_of("one")
    assert torch.equal(noise_of(layout), one)
    assert 1 - AMOUNT <= one.min() < 0.75
    assert 1.25 < one.max() <= 1 + AMOUNT
    assert len(one.unique()) > 0.9 * one.numel()
