"""Gradual unfreezing: more is trained from certain steps on (ULMFiT, arXiv:1801.06146).

Megatron lays out gradients and optimizer once, so each stage is a run of its own, as in
`run/stages.py`. It goes on from the checkpoint of the one before, at the next step, with the same
data, schedule and optimizer; what is newly trained begins with an optimizer state of zeros.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from moe_megatron.config import RunConfig, apply_overrides
from moe_megatron.config.checkpoint_files import CHECKPOINTS
from moe_megatron.config.checks import clipped
from moe_megatron.config.selector import Selector
from moe_megatron.errors import ConfigError
from moe_megatron.run.stages import run_stage


@dataclass(frozen=True, kw_only=True, slots=True)
class UnfreezeAt:
    """What is trained, too, after a step."""

    step: int
    """The last step before it."""
    selector: str

    @classmethod
    def read(cls, text: str) -> "UnfreezeAt":
        """Read one from text such as "100:attention".

        Raises:
            ConfigError: It is none.
        """
        step, colon, selector = text.partition(":")
        if not step.isdecimal() or not colon:
            raise ConfigError(
                f"'{clipped(text)}' does not say what is trained from which step on; write "
                "STEP:SELECTOR, as in 100:attention."
            )
        return cls(step=int(step), selector=str(Selector.read(selector)))


def train_and_unfreeze(
    config: RunConfig,
    changes: Sequence[UnfreezeAt],
    folder: Path,
    launch: Callable[[RunConfig], int],
    *,
    say: Callable[[str], None] = print,
) -> int:
    """Train in stages, each of which trains more than the one before.

    Args:
        config: The first stage, whose `finetune.train` the others extend; the last one runs in its
            `run_dir`.
        changes: What is trained from which step on, by rising steps; several may share one.
        folder: Where the stages before the last one run.
        launch: Runs a configuration to its end, and returns an exit code.
        say: Called with a line for each stage.

    Returns:
        The exit code of the last stage that ran.

    Raises:
        ConfigError: The steps do not rise, or lie outside the training.
        MoEError: A stage cannot start.
    """
    steps = sorted({it.step for it in changes})
    bounds = [0, *steps, config.training.train_steps]
    if any(one >= other for one, other in pairwise(bounds)):
        raise ConfigError(
            f"what is trained must change at steps between 0 and training.train_steps "
            f"({config.training.train_steps}), not at {steps}."
        )
    stage = apply_overrides(config, {"finetune.reselect": True})
    for number, end in enumerate(bounds[1:], start=1):
        last = end == bounds[-1]
        place = Path(config.run_dir) if last else folder / f"{number}-to-step-{end}"
        say(f"training {', '.join(stage.finetune.train)}")
        if (code := run_stage(stage, place, end, launch, say)) or last:
            return code
        new = [it.selector for it in changes if it.step == end]
        only_adapters = stage.adapter.on and not stage.finetune.chooses
        trained = () if only_adapters else stage.finetune.train
        stage = apply_overrides(
            stage,
            {
                "finetune.train": [*trained, *new],
                "checkpoint.load": str(place / CHECKPOINTS),
                "megatron.finetune": None,
            },
        )
    raise AssertionError("unreachable")
