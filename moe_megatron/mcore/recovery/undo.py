"""Undoes what a step has changed before its update: router buffers, random state, data.

Megatron's rerun state machine keeps the random state and the micro-batches of the step under way
anyway; the buffers of routers (expert bias, token counts of global losses) are copied here. It does
not know why a step is undone.
"""

import itertools
from typing import Any

import torch
from megatron.core.rerun_state_machine import RerunMode, RerunState, get_rerun_state_machine
from megatron.core.transformer.moe.moe_logging import get_moe_metrics_tracker
from megatron.core.transformer.moe.router import Router


class StepUndo:
    """Remembers the state at the beginning of a step.

    Args:
        model: Model chunks.
    """

    def __init__(self, model: list[Any]) -> None:
        self._routers = [
            module for chunk in model for module in chunk.modules() if isinstance(module, Router)
        ]
        self._saved: list[tuple[torch.Tensor, torch.Tensor]] = []

    @property
    def can_repeat(self) -> bool:
        """Whether Megatron keeps the data of the step."""
        return bool(get_rerun_state_machine().get_mode() != RerunMode.DISABLED)

    def remember(self) -> None:
        """A step begins."""
        buffers = (buffer for router in self._routers for buffer in router.buffers(recurse=False))
        self._saved = [(buffer, buffer.clone()) for buffer in buffers]

    def restore(self) -> None:
        """Bring buffers and random state back to the beginning of the step."""
        for buffer, saved in self._saved:
            buffer.copy_(saved)
        get_moe_metrics_tracker().clear()
        if self.can_repeat:
            # Saved by Megatron at the beginning of the step, for reruns of its own.
            get_rerun_state_machine()._restore_state()

    def forget(self) -> None:
        """Bring everything back to the beginning of a step that was left in its middle."""
        self.restore()
        get_rerun_state_machine().state = RerunState.NOT_RUNNING_YET

    def rewind(self, data: Any) -> None:
        """Make the next step read the micro-batches of this one again.

        Args:
            data: The data iterator of the step, a list of them, or None.
        """
        for iterator in data if isinstance(data, list) else [data]:
            if iterator is not None:
                iterator.iterable = itertools.chain(iterator.saved_microbatches, iterator.iterable)
        get_rerun_state_machine().current_iteration -= 1
