"""What we add to Megatron's checkpoints.

That is a resolved configuration and a tokenizer beside the tensors, a check that a checkpoint fits
the model, and errors that name the remedy.

Tensors, formats and resharding are Megatron's. This module does not know sinks or the loop.
"""

import contextlib
import errno
import logging
import os
import queue
import re
import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.training import training as loop
from torch.distributed.checkpoint.api import CheckpointException

from moe_megatron.config import CONFIG_FILE, RunConfig, dump_yaml, loading
from moe_megatron.config.checkpoint_files import (
    RELEASE,
    TRACKER,
    iteration_dir,
    read_tracker,
    step_of,
)
from moe_megatron.errors import CheckpointError, NoRoomError
from moe_megatron.experts import resolve
from moe_megatron.families.untrained import check_trains
from moe_megatron.mcore.replaced import replaced
from moe_megatron.pickle_names import refusal
from moe_megatron.platform.disk import FULL
from moe_megatron.text.folder import TOKENIZER_FILES, has_tokenizer

logger = logging.getLogger(__name__)

HUGGING_FACE = "hf"
"""Folder in a converted checkpoint with the tokenizer and configuration of its origin."""

_LOADING_FAILURES = (
    AssertionError,
    CheckpointException,
    CheckpointingException,
    EOFError,
    KeyError,
    NotImplementedError,
    OSError,
    RuntimeError,
    UnpicklingError,
    ValueError,
)

_REFUSED_BY_TORCH = re.compile(r"\bGLOBAL (\S+)")

_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST})


def latest_checkpoint(checkpoints: Path) -> Path | None:
    """Folder of the newest complete checkpoint; None where there is none.

    Raises:
        CheckpointError: Megatron's tracker file holds neither a step nor "release", which stands
            for a converted checkpoint: weights without an optimizer.
    """
    try:
        text = read_tracker(checkpoints)
    except OSError:
        return None
    if text == RELEASE:
        return checkpoints / RELEASE
    if not text.isdecimal():
        raise CheckpointError(
            f"{checkpoints / TRACKER} holds {text[:40]!r} instead of a step; write the "
            "number of a complete iter_* folder into it."
        )
    return iteration_dir(checkpoints, int(text))


def check_loadable(checkpoints: Path, config: RunConfig) -> Path:
    """Find the checkpoint to load and check that it belongs to this model.

    Args:
        checkpoints: Folder that contains `iter_*` folders, or `release`.
        config: The run that loads it.

    Returns:
        The folder of the newest checkpoint.

    Raises:
        CheckpointError: There is none, its folder is missing, or another model was saved.
    """
    folder = latest_checkpoint(checkpoints)
    if folder is None:
        raise loading.no_checkpoint(checkpoints)
    if not folder.is_dir():
        raise CheckpointError(
            f"{checkpoints / TRACKER} names {folder.name}, but {folder} is missing; write "
            "the number of a complete iter_* folder into it."
        )
    return check_same_model(folder, config)


def check_same_model(folder: Path, config: RunConfig) -> Path:
    """Check that the checkpoint of one step belongs to a run; returns its folder.

    Raises:
        CheckpointError: Another model was saved, or the run changes what it must keep.
    """
    check_trains(folder)
    loading.check_same_run(folder, config, resolve)
    return folder


def step_to_ask_for(folder: Path) -> int | None:
    """The step by which Megatron finds this checkpoint; None if its tracker file names it.

    Raises:
        CheckpointError: The tracker file is damaged; Megatron insists on reading it.
    """
    if latest_checkpoint(folder.parent) == folder:
        return None
    step = step_of(folder)
    if step is None:
        raise CheckpointError(
            f"{folder.parent / TRACKER} does not name {folder.name}; write '{RELEASE}' into it to "
            "load that one."
        )
    return step


def batch_growth(folder: Path | None, config: RunConfig) -> Fraction:
    """Sequences of a global batch, divided by those of the run that saved the checkpoint."""
    saved = folder and loading.saved_config(folder)
    before = saved.training.global_batch_size if saved else config.training.global_batch_size
    return Fraction(config.training.global_batch_size, before)


def check_writable(folder: Path) -> None:
    """Check that checkpoints can be written, before hours of training are lost.

    Raises:
        CheckpointError: The folder cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write_test_{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _explained(error, folder) from error


def write_side_files(
    folder: Path,
    config: RunConfig,
    *,
    loaded: Path | None = None,
    tokenizer: Path | None = None,
) -> None:
    """Save the resolved configuration and the tokenizer beside a checkpoint.

    Args:
        folder: Folder of the checkpoint.
        config: The run.
        loaded: The checkpoint from which the run started; if it was converted from a Hugging Face
            model, its `hf` folder is copied.
        tokenizer: Folder of the tokenizer; a tokenizer in the copied `hf` folder takes precedence.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if loaded is not None and (loaded / HUGGING_FACE).is_dir() and loaded != folder:
        shutil.copytree(loaded / HUGGING_FACE, folder / HUGGING_FACE, dirs_exist_ok=True)
    if tokenizer is not None:
        _copy_tokenizer(tokenizer, folder / HUGGING_FACE)
    target = folder / CONFIG_FILE
    temporary = target.with_suffix(".tmp")
    temporary.write_text(dump_yaml(config), encoding="utf-8")
    temporary.replace(target)


def _copy_tokenizer(source: Path, target: Path) -> None:
    if has_tokenizer(target):
        return
    target.mkdir(exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


@contextlib.contextmanager
def explained_errors(folder: Path) -> Iterator[None]:
    """Turn failures of Megatron's checkpoint writer and reader into `CheckpointError`.

    Raises:
        CheckpointError: In place of the operating system's or the checkpoint library's error.
    """
    try:
        yield
    except OSError as error:
        # The whole run is in this context: an unreadable data file is not a checkpoint error.
        if not _concerns(error, folder):
            raise
        raise _explained(error, folder) from error
    except (CheckpointException, CheckpointingException) as error:
        raise _explained(_os_reason(error, folder) or error, folder) from error
    except RuntimeError as error:
        if "No space left" not in str(error):
            raise
        raise _explained(OSError(errno.ENOSPC, str(error)), folder) from error


def why_not_written(error: CheckpointException, folder: Path) -> str:
    """What kept the ranks from writing a checkpoint, in short; "" where another rank knows."""
    if not error.failures:
        return ""
    reason = _os_reason(error, folder)
    return (reason and reason.strerror) or _first_line(_cause(error))


def _os_reason(error: BaseException, folder: Path) -> OSError | None:
    return _write_error(folder) if "Worker failure" in str(error) else None


@contextlib.contextmanager
def explained_loading(folder: Path | None) -> Iterator[None]:
    """Turn what Megatron raises about a damaged or incomplete checkpoint into `CheckpointError`.

    Args:
        folder: The checkpoint that the run loads; None if it loads none.

    Raises:
        CheckpointError: While loading, in place of Megatron's own error.
    """
    original = loop.load_checkpoint

    def load_checkpoint(*args: Any, **kwargs: Any) -> Any:
        try:
            return original(*args, **kwargs)
        except _LOADING_FAILURES as error:
            cause = _cause(error)
            if isinstance(cause, CheckpointError):
                raise cause from error
            if named := _REFUSED_BY_TORCH.search(str(cause)):
                raise refusal(named[1], str(folder)) from error
            raise CheckpointError(
                f"{folder} cannot be loaded ({type(cause).__name__}: {_first_line(cause)}). If it "
                "was saved without the optimizer, give --no-load-optim; if it is damaged, write "
                f"the step of an earlier one into {TRACKER}."
            ) from error

    with replaced(loop, "load_checkpoint", load_checkpoint):
        yield


def _cause(error: BaseException) -> BaseException:
    """What went wrong on the first rank that failed, where torch collected that of all ranks."""
    if isinstance(error, CheckpointException) and error.failures:
        return error.failures[min(error.failures)][0]
    return error


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")


def _concerns(error: OSError, folder: Path) -> bool:
    if error.filename is None:
        return error.errno in FULL | {errno.EFBIG, errno.EIO}
    return Path(os.fsdecode(error.filename)).is_relative_to(folder)


def _write_error(folder: Path) -> OSError | None:
    """The error from writing a test file, if any; Megatron's writer does not report its own."""
    probe = _existing(folder) / f".write_test_{os.getpid()}"
    try:
        probe.write_bytes(bytes(2**20))
    except OSError as error:
        return error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    return None


def _explained(error: BaseException, folder: Path) -> CheckpointError:
    text = str(error)
    code = getattr(error, "errno", None)
    if code in FULL or "No space left" in text:
        free = shutil.disk_usage(_existing(folder)).free / 2**30
        return NoRoomError(
            f"the disk of {folder} is full or its quota used up ({free:.2f} GiB free), so the "
            "checkpoint could not be written. Free space or choose another folder with --run-dir; "
            "earlier checkpoints are intact, and the run can resume from the newest one."
        )
    if code in _FORBIDDEN:
        return CheckpointError(
            f"{folder} cannot be written ({os.strerror(code)}). Change its permissions, or choose "
            "another folder with --run-dir."
        )
    # The checkpoint library quotes the tracebacks of all ranks; the last error line is the cause.
    causes = [line.strip() for line in text.splitlines() if "Error: " in line]
    return CheckpointError(
        f"the checkpoint in {folder} could not be written or read: "
        f"{causes[-1] if causes else text.strip() or type(error).__name__}. Check the folder and "
        "its disk; --debug shows the whole error."
    )


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())


@contextlib.contextmanager
def saving_without_helper_process() -> Iterator[None]:
    """Let Megatron's checkpoint writer use a plain queue for its results inside the context.

    By default a synchronous save starts a manager process with `spawn`, which runs the user's
    script a second time and takes several seconds, although this process is both writer and reader.
    """
    filesystem_async._results_queue = queue.Queue()
    try:
        yield
    finally:
        # A later run may save in another process, which a plain queue cannot reach.
        filesystem_async._results_queue = None
