"""Run folders: one folder holds one run, and a new run never overwrites an old one."""

import shlex
from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

from moe_megatron.checkpoint.integrity.newest_valid import candidates
from moe_megatron.config import CONFIG_FILE, RunConfig, apply_overrides, dump_yaml, load_config
from moe_megatron.config.checkpoint_files import (
    folder_of_checkpoints,
    is_megatron_checkpoint,
    step_of,
)
from moe_megatron.errors import CheckpointError, NoRoomError, OccupiedError
from moe_megatron.experts import own_file_words
from moe_megatron.files import replace_file
from moe_megatron.platform.disk import FULL
from moe_megatron.run.owner import Claim, claim
from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE

_ONLY_AT_THE_START = ("finetune", "no-load-optim", "no-load-rng", "ckpt-step")
"""Megatron flags that say how a run begins from a checkpoint of another one."""


def fresh_run_dir(wanted: Path) -> Path:
    """A folder without a run: the wanted one, or the first free of "<name>-2", "<name>-3", ..."""
    return next(_free_names(wanted))


def last_run_dir(wanted: Path) -> Path | None:
    """The newest run among the wanted folder and those named after it; None if there is none."""
    last = None
    for name in _names(wanted):
        if not _holds_run(name):
            return last
        last = name
    raise AssertionError("unreachable")


def claim_fresh(wanted: Path) -> Claim:
    """Become the owner of a folder without a run, which no other job is about to write, either.

    Raises:
        CheckpointError: It cannot be written.
    """
    for candidate in _free_names(wanted):
        try:
            return claim(candidate)
        except OccupiedError:
            continue
    raise AssertionError("unreachable")


def _free_names(wanted: Path) -> Iterator[Path]:
    return (name for name in _names(wanted) if not _holds_run(name))


def _names(wanted: Path) -> Iterator[Path]:
    for number in count(1):
        yield wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")


def _holds_run(folder: Path) -> bool:
    return (folder / METRICS_FILE).exists()


def checkpoints_of(config: RunConfig) -> Path:
    """Where a run saves its checkpoints, if it does."""
    return folder_of_checkpoints(config.megatron, Path(config.run_dir))


def last_saved_step(config: RunConfig) -> int | None:
    """The step of the newest checkpoint that a run has saved; None if there is none."""
    # The first one may have been half written when the run was killed.
    saved = [it for it in candidates(checkpoints_of(config)) if is_megatron_checkpoint(it)]
    return step_of(saved[0]) if saved else None


def continued(config: RunConfig, keep: Collection[str] = ()) -> RunConfig:
    """The run as it goes on from its own newest checkpoint; unchanged if it has none yet.

    Args:
        config: The run, which may say how it began from a checkpoint of another one.
        keep: Megatron flags that say how it goes on.
    """
    if last_saved_step(config) is None:
        return config
    begun = {*_ONLY_AT_THE_START} - {*keep}
    flags = {name: it for name, it in config.megatron.items() if name not in begun}
    own = {"checkpoint.load": str(checkpoints_of(config))}
    return apply_overrides(replace(config, megatron=flags), own)


def resume_command(config: RunConfig) -> str:
    """What goes on with a run; code of the user's own is given again."""
    again = own_file_words(config.moe)
    return f"moe-megatron train --resume {shlex.join([config.run_dir, *again])}"


def make_run_dir(run_dir: Path) -> None:
    """Create the folder of a run if it does not exist.

    Raises:
        CheckpointError: It cannot be created.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(run_dir, error) from error


def write_config(config: RunConfig, run_dir: Path) -> Path:
    """Write the whole configuration of a run into its folder; returns the file.

    Raises:
        CheckpointError: The folder cannot be written.
    """
    make_run_dir(run_dir)
    file = run_dir / CONFIG_FILE
    try:
        replace_file(file, [dump_yaml(config).encode()])
    except OSError as error:
        raise _not_writable(run_dir, error) from error
    return file


def announce_config(config: RunConfig, run_dir: Path, starting: Path) -> Path:
    """Write the configuration with which ranks are about to start; returns the file for them.

    A folder that has none yet gets it. The one of a run that goes on stays as it is until the ranks
    have loaded their checkpoint, which they may refuse to: see `ConfigWriter`.

    Args:
        config: The run.
        run_dir: Its folder.
        starting: A folder for the file, if it cannot be that of the run.

    Raises:
        CheckpointError: It cannot be written.
    """
    own = run_dir / CONFIG_FILE
    return write_config(config, starting if own.exists() else run_dir)


def _not_writable(run_dir: Path, error: OSError) -> CheckpointError:
    kind = NoRoomError if error.errno in FULL else CheckpointError
    return kind(
        f"the run directory {run_dir} cannot be written ({error.strerror}). Change its "
        "permissions or free space, or choose another one with --run-dir."
    )


def check_resumable(run_dir: Path) -> Path:
    """Check that a folder holds a run with a checkpoint to resume from.

    Returns:
        The folder of its checkpoints.

    Raises:
        MoEError: It does not, or its configuration is damaged; the message says what to do.
    """
    file = run_dir / CONFIG_FILE
    if not file.exists():
        raise CheckpointError(
            f"{run_dir} holds no run to resume ({file.name} is missing). Give the folder of a "
            "run, such as runs/demo_moe."
        )
    checkpoints = folder_of_checkpoints(load_config(file).megatron, run_dir)
    if not candidates(checkpoints):
        raise CheckpointError(
            f"{run_dir} holds no checkpoint to resume from: the run ended before its first one, or "
            "checkpoint.save_interval was null. Start it again with: moe-megatron train --config "
            f"{file}"
        )
    return checkpoints
