"""Keeps Python's garbage collector from looking at what stays for the whole run.

With torch and Megatron imported there are a million objects, and a full collection that visits all
of them takes a third of a second. Megatron makes two in each save.
"""

import gc
from typing import Any

from moe_megatron.mcore.loop.callbacks import Callback

_FEW = 100_000
"""So many are looked at in a few hundredths of a second."""


class LastingObjects(Callback):
    """From the first step to `release`, collections leave out what was there at the first step."""

    def __init__(self) -> None:
        self._frozen = False

    def on_train_start(self, model: list[Any], start_step: int) -> None:
        """Set aside what is there."""
        few_to_visit = len(gc.get_objects(generation=2)) < _FEW
        if few_to_visit or gc.get_freeze_count() > _FEW:  # whoever runs us has set the rest aside
            return
        gc.collect()
        gc.freeze()
        self._frozen = True

    def release(self) -> None:
        """Let collections visit everything again."""
        if self._frozen:
            gc.unfreeze()
            self._frozen = False
