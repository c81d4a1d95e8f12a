"""How a run is fitted to the processes of a machine; what is started is in tests/unit/cli."""

import pytest

from moe_megatron.config import apply_overrides, load_config
from moe_megatron.run.launch import fit_expert_parallelism


@pytest.mark.parametrize(
    ("overrides", "processes", "expected"),
    [
        ({}, 1, 1),
        ({"parallel.expert_parallel_size": 2}, 4, 2),
        ({"parallel.expert_parallel_size": 4}, 2, 2),
        ({"parallel.expert_parallel_size": 4}, 6, 2),
        ({"parallel.expert_parallel_size": 2}, 3, 1),
        # Nothing fits, so validation will say what to do.
        ({"parallel.expert_parallel_size": 2, "parallel.tensor_parallel_size": 4}, 6, 2),
        (
            {"parallel.expert_parallel_size": 4, "parallel.pipeline_parallel_size": 2},
            4,
            2,
        ),
    ],
)
def test_expert_parallel_size_is_the_largest_that_fits(overrides, processes, expected):
    config = apply_overrides(load_config("test_tiny"), overrides)
    choice = fit_expert_parallelism(config, processes)
    assert choice.value == expected
    assert choice.reason
