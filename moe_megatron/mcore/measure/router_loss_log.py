"""The losses of routers in Megatron's own log, on the rank that writes it.

Megatron 0.19 sums a loss over the ranks that share it with the groups that its routers named. The
last pipeline stage writes, and where it has no MoE layer it knows no groups, and would write a part
of each loss. It also reports the loss of micro-batches, constantly 0, with every other auxiliary
loss, whose names contain its own. How losses are computed is not known here.
"""

from typing import Any

from megatron.core import parallel_state
from megatron.core.transformer.moe.moe_logging import MoEMetricsTracker
from torch import Tensor

_NAMES = {
    "aux_loss": "load_balancing_loss",
    "seq_aux_loss": "seq_load_balancing_loss",
    "global_aux_loss": "global_load_balancing_loss",
}
"""Types of balancing, and what their losses are called."""


class RouterLossLog(MoEMetricsTracker):
    """Megatron's tracker, whose values are the same on every rank.

    Args:
        balancing: The type of balancing, or several.
    """

    def __init__(self, balancing: str | list[str]) -> None:
        super().__init__()
        types = [balancing] if isinstance(balancing, str) else balancing
        self._absent = {name for kind, name in _NAMES.items() if kind not in types}

    def record(
        self,
        name: str,
        value: Tensor,
        layer_number: int,
        num_layers: int,
        reduce_group: Any = None,
        avg_group: Any = None,
        needs_dp_avg: bool = True,
    ) -> None:
        """Add to the value of a layer: every loss as a share of each rank of a micro-batch.

        Megatron hands over its z-loss as a mean over all ranks, and ours of padded batches as a
        share, which a stage without layers could not know.
        """
        if avg_group is not None:
            reduce_group = parallel_state.get_tensor_and_context_parallel_group()
            value, avg_group = value / reduce_group.size(), None
        super().record(name, value, layer_number, num_layers, reduce_group, avg_group, needs_dp_avg)

    def report(self, *args: Any, **kwargs: Any) -> str:
        """Reduce, write and forget the values of a step; arguments as for Megatron's."""
        names = kwargs.get("track_names")
        if isinstance(names, list):
            kwargs["track_names"] = [name for name in names if name not in self._absent]
        return super().report(*args, **kwargs)  # type: ignore[no-any-return]

    def ensure_initialized(self, name: str, num_layers: int, device: Any = None) -> None:
        """Make room for a loss that no layer of this rank has, and name its groups."""
        if name in self.metrics:
            return
        super().ensure_initialized(name, num_layers, device)
        self.metrics[name].reduce_group = parallel_state.get_tensor_and_context_parallel_group()
