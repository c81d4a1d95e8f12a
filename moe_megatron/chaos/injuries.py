"""The ranks' side of harms that come from within: bad numbers in gradients and weights.

A harm leaves a file in the folder of `INJURIES_VARIABLE`, named after the injury and the rank. That
rank removes it after a step and is injured once.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe_megatron.chaos.victim import INJURIES_VARIABLE, injury_file
from moe_megatron.mcore import world
from moe_megatron.mcore.loop.callbacks import Callback, StepEnd
from moe_megatron.mcore.recovery.expert_parameters import expert_parameters


class Injuries(Callback):
    """Injures this rank when a file asks for it."""

    def __init__(self) -> None:
        self._folder = Path(os.environ[INJURIES_VARIABLE])
        self._model: list[Any] = []

    def on_train_start(self, model: list[Any], start_step: int) -> None:
        """Keep the model."""
        self._model = model

    def on_step_end(self, event: StepEnd) -> None:
        """Look for an injury."""
        for name, injure in INJURIES.items():
            with suppress(FileNotFoundError):
                injury_file(self._folder, name, world.rank()).unlink()
                injure(self._model)


def nan_gradient(model: list[Any]) -> None:
    """Make the next gradient of one parameter NaN, once."""
    parameter = next(it for it in model[0].parameters() if it.requires_grad)

    def spoil(gradient: Tensor) -> Tensor:
        hook.remove()
        return torch.full_like(gradient, float("nan"))

    hook = parameter.register_hook(spoil)


def dying_expert(model: list[Any]) -> None:
    """Damage the first expert of this rank."""
    damage(next(iter(expert_parameters(model))).tensor)


@torch.no_grad()
def damage(weight: Tensor) -> None:
    """Set one number of a weight to NaN, as a memory fault would."""
    weight.view(-1)[0] = float("nan")


INJURIES: dict[str, Callable[[list[Any]], None]] = {
    injure.__name__: injure for injure in (nan_gradient, dying_expert)
}
"""The injuries, by name."""
