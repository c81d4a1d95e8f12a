"""Ends a training run when its time is up: as SIGTERM does, after the step that it is in."""

import os
import signal
import time

from moe_megatron.mcore.loop.callbacks import Callback, StepEnd


class Deadline(Callback):
    """Stops the run after the first step that ends too late.

    Args:
        seconds: From now on.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def on_step_end(self, event: StepEnd) -> None:
        """Send this process the signal; Megatron tells the other ranks."""
        if time.monotonic() > self._end:
            os.kill(os.getpid(), signal.SIGTERM)
