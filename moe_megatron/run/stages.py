"""One training whose number of experts changes on the way.

Megatron lays out gradients, optimizer and process groups once, so each stage is a run of its own,
in a folder of its own: it ends at the step of a change, its checkpoint is given other experts, and
the next stage goes on from that, at the next step, with the same data, schedule and optimizer. A
training that was interrupted goes on when the same call is made again: finished stages are skipped.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from moe_megatron.checkpoint.edit.fewer_experts import KeepMostUsed, MergeLeastUsed
from moe_megatron.checkpoint.edit.pool_change import Change, Grow
from moe_megatron.checkpoint.execute.conversion import Execution
from moe_megatron.checkpoint.resize import change_experts
from moe_megatron.config import CONFIG_FILE, RunConfig, apply_overrides, load_config
from moe_megatron.config.checkpoint_files import CHECKPOINTS, iteration_dir, tracked_step
from moe_megatron.config.checks import join_words
from moe_megatron.errors import ConfigError

KINDS: dict[str, Callable[..., Change]] = {
    "grow": Grow,
    "keep": KeepMostUsed,
    "merge": MergeLeastUsed,
}
"""Changes by the words that name them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangeAt:
    """A change after a step."""

    step: int
    """The last step before it."""
    change: Change

    @classmethod
    def read(cls, text: str, *, noise: float = 0.0) -> "ChangeAt":
        """Read a change such as "200:grow=16".

        Args:
            text: The step, what to do, and the number of experts afterwards.
            noise: Standard deviation of what makes copies differ.

        Raises:
            ConfigError: It is none.
            CheckpointError: The noise is out of range.
        """
        step, _, rest = text.partition(":")
        kind, _, number = rest.partition("=")
        if not step.isdecimal() or kind not in KINDS or not number.isdecimal():
            raise ConfigError(
                f"'{text}' is not a change of experts; write STEP:WHAT=NUMBER, WHAT being "
                f"{join_words([*KINDS])}, as in 200:grow=16."
            )
        more = {"noise": noise} if kind == "grow" else {}
        return cls(step=int(step), change=KINDS[kind](num_experts=int(number), **more))


def train_in_stages(
    config: RunConfig,
    changes: Sequence[ChangeAt],
    launch: Callable[[RunConfig], int],
    *,
    say: Callable[[str], None] = print,
) -> tuple[int, list[Path]]:
    """Train, and change the experts on the way.

    Args:
        config: The whole training; `run_dir` is the folder of the stages.
        changes: What to change, and when.
        launch: Runs one stage to its end, and returns an exit code.
        say: Called with a line for each stage and change.

    Returns:
        The exit code of the last stage that ran, 0 if all are done; and the folders of the stages.

    Raises:
        ConfigError: The steps of the changes do not rise, or lie outside the training.
        MoEError: A stage or a change cannot be made.
    """
    _check(config, changes)
    root = Path(config.run_dir)
    ends = [*(it.step for it in changes), config.training.train_steps]
    stage, folders = config, []
    for number, end in enumerate(ends, start=1):
        folder = root / f"{number}-{stage.moe.num_experts}-experts"
        folders.append(folder)
        code = run_stage(stage, folder, end, launch, say)
        if code or number == len(ends):
            return code, folders
        stage = _changed(stage, changes[number - 1], folder, root / f"{number}-changed", say)
    raise AssertionError("unreachable")


def _check(config: RunConfig, changes: Sequence[ChangeAt]) -> None:
    steps = [0, *(it.step for it in changes), config.training.train_steps]
    if not changes or any(one >= other for one, other in pairwise(steps)):
        raise ConfigError(
            f"changes of experts must be at rising steps between 0 and training.train_steps "
            f"({config.training.train_steps}), not at {steps[1:-1]}."
        )
    if "exit-interval" in config.megatron:
        raise ConfigError("--exit-interval ends stages here; leave it out.")


def run_stage(
    config: RunConfig,
    folder: Path,
    end: int,
    launch: Callable[[RunConfig], int],
    say: Callable[[str], None],
) -> int:
    """Run a stage from where it is to the step at its end.

    Args:
        config: The whole training, as this stage makes it.
        folder: The stage's own.
        end: Its last step.
        launch: Runs a configuration to its end, and returns an exit code.
        say: Called with a line.

    Returns:
        0 if the stage is at its end, else the exit code.
    """
    own = folder / CHECKPOINTS
    done = tracked_step(own)
    if done is not None and done >= end:
        say(f"stage {folder.name}: already at step {done}")
        return 0
    say(f"stage {folder.name}: to step {end}")
    stage = until(config, end, folder)
    if done is not None:
        stage = apply_overrides(stage, {"checkpoint.load": str(own)})
    code = launch(stage)
    # A run that ends before its last step says that it can be resumed, which is what comes next.
    return 0 if tracked_step(own) == end else code


def until(config: RunConfig, end: int, folder: Path) -> RunConfig:
    """The part of a training that ends at a step, with a checkpoint, in a folder of its own."""
    overrides: dict[str, object] = {"run_dir": str(folder)}
    if config.checkpoint.save_interval is None:
        overrides["checkpoint.save_interval"] = config.training.train_steps
    if end < config.training.train_steps:
        overrides["megatron.exit-interval"] = end
    return apply_overrides(config, overrides)


def _changed(
    config: RunConfig, wanted: ChangeAt, folder: Path, place: Path, say: Callable[[str], None]
) -> RunConfig:
    """The configuration of the stage after a change, whose checkpoint is in `place`."""
    target = iteration_dir(place, wanted.step)
    if tracked_step(place) != wanted.step or not target.is_dir():
        source = iteration_dir(folder / CHECKPOINTS, wanted.step)
        report = change_experts(source, place, wanted.change, execution=Execution(progress=False))
        for remark in report.remarks:
            say(f"step {wanted.step}: {wanted.change.num_experts} experts: {remark}")
    moe = load_config(target / CONFIG_FILE).moe
    sizes = {"moe.num_experts": moe.num_experts, "moe.top_k": moe.top_k}
    return apply_overrides(config, {**sizes, "checkpoint.load": str(place)})
