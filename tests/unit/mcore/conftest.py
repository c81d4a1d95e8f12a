"""Megatron, importable by the tests of this folder, and a world of one process.

Loaded before the test modules, so that they may import `megatron` at the top on any machine.
"""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

import moe_megatron.mcore  # noqa: F401


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
