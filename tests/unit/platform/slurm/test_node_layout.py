"""Layouts that cannot work are refused before a queue does, with those that can."""

import pytest

from moe_megatron.config import apply_overrides, load_config
from moe_megatron.errors import ConfigError, TopologyError
from moe_megatron.platform.slurm.node_layout import Layout, check_layout, fitting_nodes


def test_layout_that_fits_is_accepted() -> None:
    check_layout(load_config("mixtral_8x7b"), Layout(nodes=8, processes_per_node=8))


def test_layout_that_does_not_fit_is_refused_with_those_that_do() -> None:
    with pytest.raises(TopologyError, match=r"3 nodes x 8 GPUs: world size .* 2, 4 or 8 nodes fit"):
        check_layout(load_config("mixtral_8x7b"), Layout(nodes=3, processes_per_node=8))


def test_layout_that_fits_no_number_of_nodes_says_so() -> None:
    layout = Layout(nodes=2, processes_per_node=3, gpus=False)
    config = apply_overrides(load_config("demo_moe"), {"training.global_batch_size": 16})
    with pytest.raises(TopologyError, match="No number of nodes with 3 processes fits"):
        check_layout(config, layout)


def test_fitting_nodes_are_the_nearest_below_and_above() -> None:
    config = load_config("mixtral_8x7b")
    for nodes in fitting_nodes(config, Layout(nodes=5, processes_per_node=8)):
        config.validate(nodes * 8)


@pytest.mark.parametrize(("nodes", "processes"), [(0, 8), (2, 0)])
def test_layout_without_processes_is_refused(nodes: int, processes: int) -> None:
    with pytest.raises(ConfigError, match="needs at least 1 node and 1 process"):
        check_layout(load_config("demo_moe"), Layout(nodes=nodes, processes_per_node=processes))


def test_run_without_checkpoints_is_refused() -> None:
    config = apply_overrides(load_config("demo_moe"), {"checkpoint.save_interval": None})
    with pytest.raises(ConfigError, match=r"checkpoint\.save_interval is null"):
        check_layout(config, Layout(nodes=1, processes_per_node=2))
