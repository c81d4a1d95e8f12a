"""Training runs that go wrong when a test asks for it: the rank's side of the tests of alerts.

A run trains in FOLDER/FAULT without end, and slowly, so that several can share a machine. The file
`go` in its folder lets the fault happen; the test kills the ranks when it has seen enough.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from moe_megatron.config import apply_overrides, load_config
from moe_megatron.config.flags import split_flags
from moe_megatron.mcore import world
from moe_megatron.mcore.layers.measured_router import MeasuredRouter
from moe_megatron.mcore.loop.callbacks import Callback, StepEnd
from moe_megatron.run.start import Attachments, start

OVERRIDES = {
    "training.train_steps": 1_000_000,
    "parallel.expert_parallel_size": 2,
    "checkpoint.save_interval": None,
    "telemetry.metrics_port": 0,
    "telemetry.history": False,
    "telemetry.plain_console": True,
    "telemetry.console_interval": 10,
    # Without the second flag Megatron would end the run at the first NaN.
    **split_flags(["--mock-data", "--no-check-for-nan-in-loss-and-grad"]),
}


PAUSE_SECONDS = 0.2
"""Between two steps."""


class Fault(Callback):
    """Does harm after each step, from the moment the test says `go`."""

    def __init__(self, folder: Path, harm: Callable[["Fault"], None]) -> None:
        self.folder = folder
        self.model: list[Any] = []
        self._harm = harm

    def on_train_start(self, model: list[Any], start_step: int) -> None:
        """Keep the model."""
        self.model = model

    def on_step_end(self, event: StepEnd) -> None:
        """Look whether it is time."""
        time.sleep(PAUSE_SECONDS)
        if (self.folder / "go").exists():
            self._harm(self)


@torch.no_grad()
def collapse(fault: Fault) -> None:
    """Every token goes to the same experts: a router without weights cannot tell them apart."""
    for chunk in fault.model:
        for module in chunk.modules():
            if isinstance(module, MeasuredRouter):
                module.weight.zero_()


@torch.no_grad()
def nan(fault: Fault) -> None:
    """One weight is not a number."""
    next(fault.model[0].parameters()).view(-1)[0] = float("nan")


def stall(fault: Fault) -> None:
    """The last process no longer does its part."""
    while world.rank() != 0:
        time.sleep(1)


def kill(fault: Fault) -> None:
    """The last process is gone from one moment to the next."""
    if world.rank() != 0:
        os.kill(os.getpid(), signal.SIGKILL)


FAULTS = {fault.__name__: fault for fault in (collapse, nan, stall, kill)}


def main(folder: Path, name: str) -> None:
    """Train the run of a fault."""
    run_dir = folder / name
    config = apply_overrides(load_config("test_tiny"), {**OVERRIDES, "run_dir": str(run_dir)})
    start(config, attached=Attachments(callbacks=[Fault(run_dir, FAULTS[name])]))
