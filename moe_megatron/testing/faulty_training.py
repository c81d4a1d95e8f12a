"""Training runs that go wrong on request: the ranks' part of the tests of alerts.

A run trains in FOLDER/FAULT without end, slowly, so that several can share a machine. The file `go`
in its folder triggers the fault; the test kills the ranks when it has seen enough.
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
    "training.micro_batch_size": 2,
    "checkpoint.save_interval": None,
    # The run goes on however long its gradients are not finite.
    "recovery.max_skips": 1_000_000,
    "telemetry.metrics_port": 0,
    "telemetry.history": False,
    "telemetry.plain_console": True,
    "telemetry.console_interval": 10,
    **split_flags(["--mock-data"]),
}


PAUSE_SECONDS = 0.2
"""Pause between two steps."""


class Fault(Callback):
    """Calls `harm` after each step, once the file `go` exists."""

    def __init__(self, folder: Path, harm: Callable[["Fault"], None]) -> None:
        self.folder = folder
        self.model: list[Any] = []
        self._harm = harm

    def on_train_start(self, model: list[Any], start_step: int) -> None:
        """Keep the model."""
        self.model = model

    def on_step_end(self, event: StepEnd) -> None:
        """Cause the fault if the file `go` exists."""
        time.sleep(PAUSE_SECONDS)
        if (self.folder / "go").exists():
            self._harm(self)


@torch.no_grad()
def collapse(fault: Fault) -> None:
    """Send every token to the same experts, by setting the router weights to zero."""
    for chunk in fault.model:
        for module in chunk.modules():
            if isinstance(module, MeasuredRouter):
                module.weight.zero_()


def nan(fault: Fault) -> None:
    """Make the gradient of one weight NaN, in every step from now on."""
    next(fault.model[0].parameters()).register_hook(lambda gradient: gradient * float("nan"))


def stall(fault: Fault) -> None:
    """Make every rank but 0 hang."""
    while world.rank() != 0:
        time.sleep(1)


def kill(fault: Fault) -> None:
    """Kill every rank but 0 without warning."""
    if world.rank() != 0:
        os.kill(os.getpid(), signal.SIGKILL)


FAULTS = {fault.__name__: fault for fault in (collapse, nan, stall, kill)}


def main(folder: Path, name: str) -> None:
    """Run the training with the fault of this name."""
    run_dir = folder / name
    own = {"run_dir": str(run_dir), "parallel.expert_parallel_size": world.size()}
    config = apply_overrides(load_config("test_tiny"), OVERRIDES | own)
    start(config, attached=Attachments(callbacks=[Fault(run_dir, FAULTS[name])]))
