"""Parallel sizes against processes, experts and layers."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_megatron.config import ParallelConfig
from moe_megatron.errors import ConfigError, TopologyError

SIZES = st.sampled_from([1, 2, 3, 4])


@pytest.mark.parametrize(
    ("sizes", "world_size", "message"),
    [
        (
            {"tensor_parallel_size": 2, "pipeline_parallel_size": 2},
            6,
            "world size (6) is not divisible by tensor_parallel_size (2) x "
            "pipeline_parallel_size (2) x context_parallel_size (1) = 4; start 4 or 8 processes, "
            "or use smaller parallel sizes.",
        ),
        (
            {"expert_parallel_size": 2},
            1,
            "world size (1) is not divisible by expert_tensor_parallel_size (1) x "
            "expert_parallel_size (2) x pipeline_parallel_size (1) = 2; start 2 processes, or set "
            "expert_parallel_size to 1.",
        ),
        (
            {"expert_parallel_size": 16},
            12,
            "start 16 processes, or set expert_parallel_size to 1, 2 or 4.",
        ),
        ({"expert_tensor_parallel_size": 4}, 2, "or set expert_tensor_parallel_size to 1."),
        (
            {"expert_parallel_size": 6},
            6,
            "expert_parallel_size (6) must divide num_experts (16); try 1, 2, 4, 8 or 16.",
        ),
        (
            {"pipeline_parallel_size": 5},
            5,
            "pipeline_parallel_size (5) must divide num_layers (12); try 1, 2, 3, 4, 6 or 12, or "
            "cut the layers unevenly with megatron.pipeline-model-parallel-layout.",
        ),
        (
            {"pipeline_parallel_size": 3, "virtual_pipeline_stages": 3},
            3,
            "pipeline_parallel_size (3) x virtual_pipeline_stages (3) must divide num_layers "
            "(12); try virtual_pipeline_stages 1, 2 or 4.",
        ),
        ({}, 0, "world size must be at least 1, not 0."),
    ],
)
def test_validate_world_misfit_names_the_remedy(
    sizes: dict[str, Any], world_size: int, message: str
) -> None:
    with pytest.raises(TopologyError, match=re.escape(message)):
        ParallelConfig(**sizes).validate_world(world_size, num_experts=16, num_layers=12)


def test_validate_world_dense_model_with_experts_spread_is_refused() -> None:
    message = "expert_parallel_size (2) needs experts, but this model is dense"
    with pytest.raises(TopologyError, match=re.escape(message)):
        ParallelConfig(expert_parallel_size=2).validate_world(2, num_experts=None, num_layers=4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tensor_parallel_size": 0}, "parallel.tensor_parallel_size must be at least 1, not 0."),
        (
            {"virtual_pipeline_stages": 2},
            "virtual_pipeline_stages (2) needs a pipeline_parallel_size of at least 2, not 1",
        ),
    ],
)
def test_parallel_wrong_value_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        ParallelConfig(**fields)


@given(tensor=SIZES, pipeline=SIZES, context=SIZES, expert=SIZES, expert_tensor=SIZES | st.none())
def test_world_size_step_is_the_smallest_world_that_fits(
    tensor: int, pipeline: int, context: int, expert: int, expert_tensor: int | None
) -> None:
    config = ParallelConfig(
        tensor_parallel_size=tensor,
        pipeline_parallel_size=pipeline,
        context_parallel_size=context,
        expert_parallel_size=expert,
        expert_tensor_parallel_size=expert_tensor,
    )
    step = config.world_size_step
    for world_size in range(1, step):
        with pytest.raises(TopologyError):
            config.validate_processes(world_size, num_experts=12)
    config.validate_world(step, num_experts=12, num_layers=12)
    assert config.data_parallel_size(step) * tensor * pipeline * context == step


@pytest.mark.parametrize(
    ("tensor", "wanted", "decision"),
    [
        (1, None, (False, "tensor_parallel_size is 1, so there is nothing to split")),
        (1, True, (False, "tensor_parallel_size is 1, so there is nothing to split")),
        (2, None, (True, "tensor_parallel_size is 2")),
        (2, False, (False, "set in the configuration")),
    ],
)
def test_choose_sequence_parallel_gives_its_reason(
    tensor: int, wanted: bool | None, decision: tuple[bool, str]
) -> None:
    config = ParallelConfig(tensor_parallel_size=tensor, sequence_parallel=wanted)
    assert config.choose_sequence_parallel() == decision


def test_expert_tensor_size_defaults_to_tensor_parallel_size() -> None:
    assert ParallelConfig(tensor_parallel_size=4).expert_tensor_size == 4
    config = ParallelConfig(tensor_parallel_size=4, expert_tensor_parallel_size=1)
    assert config.expert_tensor_size == 1
