"""Renews what routers remember (`layers/router_state.py`) when a step of Megatron's loop ends.

One reduction sums over the processes that have other tokens of the same layers. A step that does
not count leaves every state as it was.
"""

from typing import Any

import torch
import torch.distributed as dist
from megatron.core import mpu

from moe_megatron.mcore.layers.router_state import ObservedState, states_of
from moe_megatron.mcore.loop.callbacks import Callback, StepEnd
from moe_megatron.mcore.measure.own_tokens import sees_own_tokens


class RouterStates(Callback):
    """Renews what the routers of a model remember, after every step that counts."""

    _states: tuple[ObservedState, ...] = ()

    def on_train_start(self, model: list[Any], start_step: int) -> None:
        """Find the states of this rank's layers."""
        self._states = tuple(states_of(*model))

    def on_step_end(self, event: StepEnd) -> None:
        """Renew the states, on every rank."""
        if not self._states:
            return
        if event.skipped:
            self.on_step_discarded(event.step)
            return
        sums = torch.cat([state.sums for state in self._states])
        if not sees_own_tokens():
            sums.zero_()
        group = mpu.get_tensor_and_data_parallel_group(with_context_parallel=True)
        dist.all_reduce(sums, group=group)
        parts = torch.split(sums, [state.sums.numel() for state in self._states])
        for state, part in zip(self._states, parts, strict=True):
            state.renew(part)

    def on_step_discarded(self, step: int) -> None:
        """Forget what the routers observed in this step."""
        for state in self._states:
            state.discard()
