"""Harms to a training run, as callbacks that a run can be given through `Attachments`.

Each happens at one step, on one rank; `once` keeps it from happening again in a later attempt of
the same run. They do not know what a run does about them.
"""

import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from moe_megatron.chaos.injuries import damage
from moe_megatron.mcore import world
from moe_megatron.mcore.loop.callbacks import Callback, StepEnd
from moe_megatron.mcore.recovery.adapted_experts import parameters_of_experts


def once(run_dir: Path, name: str) -> bool:
    """Whether this is the first call for the run and name, in all its attempts and ranks."""
    folder = run_dir / "harms"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        (folder / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


class Harm(Callback):
    """Does something to the model when step `step` is computed on rank `rank`.

    Args:
        step: Number of the step, from 1.
        rank: The rank that is harmed; negative numbers count from the last.
    """

    def __init__(self, step: int, rank: int = -1) -> None:
        self.step = step
        self.rank = rank % world.size()
        self.now = 0
        """Number of the step that is being computed."""

    def on_step_start(self, step: int) -> None:
        """Remember the step."""
        self.now = step

    def on_train_start(self, model: list[Any], start_step: int) -> None:
        """Harm the model in the forward pass of its last module."""
        _module(model, "final_layernorm").register_forward_hook(self._hook)

    def _hook(self, module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> Any:
        due = self.now == self.step and world.rank() == self.rank
        return self.harm(output) if module.training and due else None

    def harm(self, output: torch.Tensor) -> torch.Tensor | None:
        """The output to go on with; None for the same."""
        raise NotImplementedError


class NanOutput(Harm):
    """Makes the output of the last layer NaN, and so loss and gradients.

    Args:
        step: See `Harm`.
        rank: See `Harm`.
        times: In how many forward passes; each computation of a step has one per micro-batch.
    """

    def __init__(self, step: int, rank: int = -1, times: float = math.inf) -> None:
        super().__init__(step, rank)
        self._times = times

    def harm(self, output: torch.Tensor) -> torch.Tensor | None:
        """NaN, as often as it is wanted."""
        self._times -= 1
        return output * math.nan if self._times >= 0 else None


class Scaled(Harm):
    """Multiplies the output of the last layer, which makes the loss a spike."""

    def harm(self, output: torch.Tensor) -> torch.Tensor:
        """A hundred times the output."""
        return output * 100.0


class BadExpert(Harm):
    """Makes a weight of one expert NaN, on the ranks that have a part of it.

    Args:
        step: See `Harm`.
        layer: Global number of the layer, from 1.
        expert: Number of the expert, from 0.
        gradients: Harm its gradient instead, each time one is computed from that step on.
        times: How often the weight is harmed, if the step is made more than once.
        adapter: Harm the last matrix of its adapter.
        late: Harm the weight when the step has ended, before it is saved.
    """

    def __init__(
        self,
        step: int,
        layer: int,
        expert: int,
        *,
        gradients: bool = False,
        times: float = math.inf,
        adapter: bool = False,
        late: bool = False,
    ) -> None:
        super().__init__(step)
        self._times, self._late, self._adapter = times, late, adapter
        self._layer, self._expert, self._gradients = layer, expert, gradients
        self._weights: list[torch.nn.Parameter] = []

    def on_train_start(self, model: list[Any], start_step: int) -> None:
        """Find the expert."""
        own = [
            it.tensor
            for it in parameters_of_experts(model)
            if (it.layer, it.expert) == (self._layer, self._expert)
        ]
        self._weights = own[-1:] if self._adapter else own[:1]
        for weight in self._weights if self._gradients else ():
            weight.register_hook(self._gradient)  # type: ignore[no-untyped-call]

    def on_step_start(self, step: int) -> None:
        """Harm the weight when the step begins."""
        super().on_step_start(step)
        if not self._late:
            self._spoil(step)

    def on_step_end(self, event: StepEnd) -> None:
        """Or harm it when the step has ended."""
        if self._late:
            self._spoil(event.step)

    def _spoil(self, step: int) -> None:
        if step == self.step and not self._gradients and self._times > 0:
            self._times -= 1
            for weight in self._weights:
                damage(weight)

    def _gradient(self, gradient: torch.Tensor) -> torch.Tensor | None:
        # An expert without tokens has a gradient of zeros, if any.
        return gradient * math.nan if self.now >= self.step and bool(gradient.any()) else None


class Stopped(Harm):
    """Stops the process as SIGSTOP does, once."""

    def __init__(self, step: int, run_dir: Path, rank: int = -1) -> None:
        super().__init__(step, rank)
        self._run_dir = run_dir

    def harm(self, output: torch.Tensor) -> None:
        """Stop; nothing continues it."""
        if once(self._run_dir, f"stopped{self.step}"):
            os.kill(os.getpid(), signal.SIGSTOP)


class Stuck(Harm):
    """Makes one rank wait for something that never comes."""

    def harm(self, output: torch.Tensor) -> None:
        """Wait."""
        while True:
            time.sleep(1)


def _module(model: list[Any], name: str) -> Any:
    found = (m for chunk in model for n, m in chunk.named_modules() if n.endswith(name))
    return next(found, torch.nn.Identity())


HARMS: dict[str, Callable[..., Callback]] = {
    "nan": NanOutput,
    "spike": Scaled,
    "expert": BadExpert,
    "stop": Stopped,
    "stuck": Stuck,
}
