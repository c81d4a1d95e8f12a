"""Megatron, importable by the tests of this folder, and a world of one process.

Loaded before the test modules, so that they may import `megatron` at the top on any machine.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist

import moe_megatron.mcore  # noqa: F401
from moe_megatron.mcore.layers.measured_router import MeasuredRouter
from moe_megatron.mcore.measure.counters import RoutingCounters, RoutingRow


@pytest.fixture(scope="module")
def world() -> Iterator[None]:
    """Process groups of a single process."""
    from megatron.core import parallel_state  # an import sorter would put it above ours

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    try:
        yield
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


@pytest.fixture
def device() -> torch.device:
    """Where the routers of this machine run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def counted(device: torch.device) -> Callable[[MeasuredRouter], RoutingRow]:
    """Draws a router's weights, and attaches the row it counts into."""

    def attach(router: MeasuredRouter) -> RoutingRow:
        torch.manual_seed(1)
        router.to(device).set_layer_number(1)
        torch.nn.init.normal_(router.weight)
        row = RoutingCounters((1,), router.config.num_moe_experts, device).row(1)
        router.attach(row)
        return row

    return attach
