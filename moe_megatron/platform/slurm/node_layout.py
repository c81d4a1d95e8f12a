"""Whether a run fits the nodes that a job asks for, before a queue finds out.

`RunConfig.validate` knows the rules for a number of processes; this module says in nodes what would
fit. It does not know scripts.
"""

from dataclasses import dataclass

from moe_megatron.config import RunConfig
from moe_megatron.config.checks import join_words
from moe_megatron.errors import ConfigError, TopologyError

_MOST_NODES = 1024
_SHOWN = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """The machines that a job asks for."""

    nodes: int
    processes_per_node: int
    """Ranks of a node: its GPUs, or processes on CPUs."""
    gpus: bool = True
    """Whether each rank has a GPU."""

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.nodes * self.processes_per_node


def check_layout(config: RunConfig, layout: Layout) -> None:
    """Check that a run can be trained, stopped and continued on these nodes.

    Raises:
        ConfigError: It cannot; the message says what would fit.
    """
    if layout.nodes < 1 or layout.processes_per_node < 1:
        raise ConfigError(
            f"a job needs at least 1 node and 1 process on each, not {layout.nodes} and "
            f"{layout.processes_per_node}."
        )
    if config.checkpoint.save_interval is None:
        raise ConfigError(
            "checkpoint.save_interval is null, but a job that ends at its time limit goes on from "
            "a checkpoint; set it to a number of steps."
        )
    try:
        config.validate(layout.world_size)
    except TopologyError as error:
        fitting = fitting_nodes(config, layout)
        unit = "GPUs" if layout.gpus else "processes"
        given = f"{layout.nodes} nodes x {layout.processes_per_node} {unit}"
        hint = (
            f"With {layout.processes_per_node} {unit} per node, {join_words(fitting)} nodes fit."
            if fitting
            else f"No number of nodes with {layout.processes_per_node} {unit} fits."
        )
        raise TopologyError(f"{given}: {error} {hint}") from error


def fitting_nodes(config: RunConfig, layout: Layout) -> list[int]:
    """The numbers of nodes nearest to the wanted one, at most two below and two above, that fit."""
    below = [n for n in range(layout.nodes - 1, 0, -1) if _fits(config, layout, n)][:_SHOWN]
    above: list[int] = []
    for nodes in range(layout.nodes + 1, _MOST_NODES + 1):
        if len(above) == _SHOWN:
            break
        if _fits(config, layout, nodes):
            above.append(nodes)
    return sorted(below) + above


def _fits(config: RunConfig, layout: Layout, nodes: int) -> bool:
    try:
        config.validate(nodes * layout.processes_per_node)
    except ConfigError:
        return False
    return True
