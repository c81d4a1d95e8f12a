"""Routing in TensorBoard and W&B, through the writers that Megatron opened.

Megatron opens them on the last rank if its own flags (--tensorboard-dir, --wandb-project) ask for
it, and writes loss and learning rate itself. This module adds the routing, under the names of the
metric catalog, at the interval of Megatron's --tensorboard-log-interval. It does not know how
routing is measured.
"""

from typing import Any, Self

import numpy as np
from megatron.training import get_args, get_tensorboard_writer, get_wandb_writer

from moe_megatron.telemetry.metric import LAYER_QUANTILES
from moe_megatron.telemetry.values.expert_load import BoolArray
from moe_megatron.telemetry.values.layer_values import across_layers, layer_values
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot

_LOAD = "moe_expert_load_ratio"


class RoutingWriters:
    """Writes routing snapshots where Megatron writes its own numbers.

    Args:
        tensorboard: A `SummaryWriter`, or None.
        wandb: The `wandb` module with a run open, or None.
        interval: Number of steps from one written step to the next.
    """

    def __init__(self, tensorboard: Any, wandb: Any, interval: int) -> None:
        self._tensorboard = tensorboard
        self._wandb = wandb
        self._interval = interval

    @classmethod
    def of_megatron(cls) -> Self | None:
        """Megatron's writers, on the rank that has any; None on the others."""
        tensorboard, wandb = get_tensorboard_writer(), get_wandb_writer()
        if tensorboard is None and wandb is None:
            return None
        return cls(tensorboard, wandb, get_args().tensorboard_log_interval)

    def wants(self, step: int) -> bool:
        """Whether this step is written."""
        return step % self._interval == 0

    def write(self, routing: RoutingSnapshot, dead: BoolArray | None = None) -> None:
        """Write one step: values per layer, their mean and quantiles, and a histogram of loads.

        Args:
            routing: The step.
            dead: The dead experts; see `layer_values`.
        """
        scalars = {
            f"{name}/{layer}": value
            for name, values in layer_values(routing, dead).items()
            for layer, value in _named(routing.layers, values)
        }
        load = routing.relative_load.ravel()
        if self._tensorboard is not None:
            for tag, value in scalars.items():
                self._tensorboard.add_scalar(tag, value, routing.step)
            if np.isfinite(load).all():
                self._tensorboard.add_histogram(_LOAD, load, routing.step)
        if self._wandb is not None:
            histogram = self._wandb.Histogram(load[np.isfinite(load)])
            self._wandb.log({**scalars, _LOAD: histogram}, routing.step)


def _named(layers: tuple[int, ...], values: Any) -> list[tuple[str, float]]:
    named = [(f"layer_{layer}", value) for layer, value in zip(layers, values, strict=True)]
    finite = values[np.isfinite(values)]
    named.append(("mean", finite.mean() if finite.size else float("nan")))
    return [*named, *zip(LAYER_QUANTILES, across_layers(values).tolist(), strict=True)]
