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
    *ends, last = ends_of_stages(config, changes)
    stage = first_stage(config)
    for number, end in enumerate(ends, start=1):
        place = folder / f"{number}-to-step-{end}"
        say(_announced(stage))
        if code := run_stage(stage, place, end, launch, say):
            return code
        stage = next_stage(stage, changes, end, place / CHECKPOINTS)
    say(_announced(stage))
    return run_stage(stage, Path(config.run_dir), last, launch, say)


def ends_of_stages(config: RunConfig, changes: Sequence[UnfreezeAt]) -> list[int]:
    """The last step of each stage.

    Raises:
        ConfigError: The steps do not rise, or lie outside the training.
    """
    steps = sorted({it.step for it in changes})
    bounds = [0, *steps, config.training.train_steps]
    if any(one >= other for one, other in pairwise(bounds)):
        raise ConfigError(
            f"what is trained must change at steps between 0 and training.train_steps "
            f"({config.training.train_steps}), not at {steps}."
        )
    return bounds[1:]


def first_stage(config: RunConfig) -> RunConfig:
    """The training as its first stage makes it: the selection may be another in the next one."""
    return apply_overrides(config, {"finetune.reselect": True})


def next_stage(
    stage: RunConfig, changes: Sequence[UnfreezeAt], end: int, checkpoints: Path
) -> RunConfig:
    """The stage that goes on from the end of another one, whose checkpoints are given."""
    new = [it.selector for it in changes if it.step == end]
    only_adapters = stage.adapter.on and not stage.finetune.chooses
    trained = () if only_adapters else stage.finetune.train
    return apply_overrides(
        stage,
        {
            "finetune.train": [*trained, *new],
            "checkpoint.load": str(checkpoints),
            "megatron.finetune": None,
        },
    )


def _announced(stage: RunConfig) -> str:
    return f"training {', '.join(stage.finetune.train)}"
