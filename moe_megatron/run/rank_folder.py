"""The run folder as the ranks see it: claimed for all of them, and looked after at every step.

A launcher of ours has claimed the folder before it started the ranks. Under any other launcher rank
0 claims it, and all ranks hear the answer before one of them has changed a file.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from moe_megatron.config import CONFIG_FILE, RunConfig
from moe_megatron.errors import CheckpointError, MoEError, NoRoomError, OccupiedError
from moe_megatron.mcore import world
from moe_megatron.mcore.loop.callbacks import Callback, StepEnd
from moe_megatron.platform.death import one_line
from moe_megatron.run.folder import claim_fresh, write_config
from moe_megatron.run.heartbeat import holding
from moe_megatron.run.owner import claim, is_ours, writing
from moe_megatron.telemetry.journal import note


@contextmanager
def claimed_folder(
    wanted: Path, *, fresh: bool, backend: str, timeout: timedelta
) -> Iterator[Path]:
    """The folder of the run, which is this job's while the context is open; on every rank.

    Args:
        wanted: The folder that was asked for.
        fresh: If it already holds a run, or another job writes it, use the next free name instead.
        backend: "gloo" or "nccl", with which the ranks agree.
        timeout: How long ranks of the run wait for each other.

    Raises:
        OccupiedError: Another job owns it.
        CheckpointError: It cannot be written.
    """
    with ExitStack() as stack:
        folder = wanted
        if fresh or not is_ours(wanted):
            if world.size() > 1:
                world.join(backend, timeout)
            folder = _claim_for_all(stack, wanted, fresh=fresh)
        stack.enter_context(writing(folder))
        yield folder


def _claim_for_all(stack: ExitStack, wanted: Path, *, fresh: bool) -> Path:
    answer = {"folder": "", "refused": "", "why": ""}
    if world.rank() == 0:
        try:
            ours = stack.enter_context(holding(claim_fresh(wanted) if fresh else claim(wanted)))
            answer["folder"] = str(ours.run_dir)
        except MoEError as error:
            if world.size() == 1:
                raise
            answer["refused"], answer["why"] = type(error).__name__, str(error)
    if world.size() > 1:
        answer = json.loads(world.agree_on_text(json.dumps(answer)))
    if answer["refused"]:
        occupied = answer["refused"] == OccupiedError.__name__
        raise (OccupiedError if occupied else CheckpointError)(answer["why"])
    return Path(answer["folder"])


@contextmanager
def noted_end(run_dir: Path) -> Iterator[Callable[[int], None]]:
    """Note in the journal how a run ended; a launcher of ours does it for its ranks.

    Yields:
        A function that takes the exit code of a run that ended in order.
    """
    codes: list[int] = []
    reason = ""
    try:
        yield codes.append
    except MoEError as error:
        codes, reason = [error.exit_code], str(error)
        raise
    except BaseException as error:
        codes, reason = [1], one_line(error)
        raise
    finally:
        if world.rank() == 0 and not is_ours(run_dir):
            note(run_dir if run_dir.is_dir() else None, "ended", code=codes[0], reason=reason)


class FolderWatch(Callback):
    """Ends the run when its folder is gone, before half of it is written anew; on rank 0."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._known = _identity(run_dir) if world.rank() == 0 else None

    def on_step_end(self, event: StepEnd) -> None:
        """Look whether the folder is still there."""
        self._check()

    def on_checkpoint_start(self, step: int) -> None:
        """Look before a checkpoint creates its folders."""
        self._check()

    def _check(self) -> None:
        if self._known is not None and _identity(self._run_dir) != self._known:
            raise CheckpointError(
                f"the run folder {self._run_dir} was removed while the run was writing to it, so "
                "the run ends; what it had saved is lost. Start it again."
            )


class ConfigWriter(Callback):
    """Writes the configuration of the run into its folder, on rank 0.

    A folder that has none gets it at once. One that has changes only when a checkpoint has been
    loaded with the new one: a start that is refused changes nothing.
    """

    def __init__(self, config: RunConfig) -> None:
        self._config, self._run_dir = config, Path(config.run_dir)
        self._is_due = world.rank() == 0
        if self._is_due and not (self._run_dir / CONFIG_FILE).exists():
            self._write()

    def on_train_start(self, model: list[Any], start_step: int) -> None:
        """Write it."""
        self._is_due = world.rank() == 0
        self._write()

    def on_step_end(self, event: StepEnd) -> None:
        """Write it, if there was no room for it until now."""
        self._write()

    def _write(self) -> None:
        if self._is_due:
            with suppress(NoRoomError):
                write_config(self._config, self._run_dir)
                self._is_due = False


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(folder)
    except OSError:
        return None
    return found.st_dev, found.st_ino
