"""How this package writes to disk: complete files or none, one writer at a time.

Readers of a dataset may be other processes, other ranks or the next run after a power cut.
Therefore everything is written under a hidden name next to its target and renamed when it is
complete, under a lock that disappears with the process that holds it. The module knows nothing
about what is stored.
"""

import errno
import fcntl
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from moe_megatron.errors import ConfigError, DataError

_log = logging.getLogger(__name__)

_LONGEST_NAME = 255
"""Of a file, in bytes, on all file systems in use."""
_FREE_SPACE = "free some space or choose a directory on another disk"
_CHOOSE_WRITABLE = "choose a directory that you may write to (set cache_dir or MOE_MEGATRON_CACHE)"
_REMEDIES = {
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EFBIG: "raise the file size limit (ulimit -f) or choose another file system",
    errno.EACCES: _CHOOSE_WRITABLE,
    errno.EPERM: _CHOOSE_WRITABLE,
    errno.EROFS: _CHOOSE_WRITABLE,
    errno.EEXIST: "a file is where a directory is needed; choose another directory",
    errno.ENOTDIR: "a part of this path is a file; choose another directory",
    errno.ENOLCK: "this file system has no locks; choose a local directory",
    errno.ENOTSUP: "this file system has no locks; choose a local directory",
}


def user_path(given: str | os.PathLike[str]) -> Path:
    """A path as a person writes it, where `~` stands for a home folder.

    Raises:
        ConfigError: It is no path at all.
    """
    if not isinstance(given, str | os.PathLike):
        raise ConfigError(  # in one line, also if it is a model
            f"a path is text or a pathlib.Path, not {' '.join(repr(given).split()):.60} "
            f"({type(given).__name__})."
        )
    path = Path(given)
    try:
        return path.expanduser()
    except (RuntimeError, ValueError):  # there is no such user: a name like any other
        return path


def namable(path: Path) -> Path:
    """A path that a file can have, whether there is one or not.

    Raises:
        ConfigError: One of its names is longer than a file's can be.
    """
    if any(len(os.fsencode(part)) > _LONGEST_NAME for part in path.parts):
        raise ConfigError(f"the name {path} is longer than a file's can be.")
    return path


def readable_name(text: str) -> str:
    """The end of a text as part of a file's name, for people; it need not be unique."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.")[-60:]


def default_cache_dir() -> Path:
    """Where prepared data lives unless the caller says otherwise.

    Returns:
        `$MOE_MEGATRON_CACHE`, else `$XDG_CACHE_HOME/moe_megatron`, else `~/.cache/moe_megatron`.
    """
    if own := os.environ.get("MOE_MEGATRON_CACHE"):
        return user_path(own)
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return user_path(base) / "moe_megatron"


@contextmanager
def explained_writes(target: Path) -> Iterator[None]:
    """Turn an operating system error inside the block into a `DataError` with a remedy.

    Args:
        target: What the block writes; named when the system error names no file.

    Raises:
        DataError: For any `OSError` raised inside (disk full, not writable, no locks, ...).
    """
    try:
        yield
    except OSError as error:
        path = error.filename or target
        remedy = _REMEDIES.get(error.errno or 0, "check the path and the disk, then run again")
        reason = error.strerror or str(error)
        raise DataError(f"cannot write {path}: {reason}; {remedy}.") from error


@contextmanager
def exclusive_lock(target: Path) -> Iterator[None]:
    """Let one process at a time work on `target`; the others wait.

    The kernel drops the lock when its holder dies, so a killed run never blocks the next one.
    The lock file `.<name>.lock` is removed on release.
    """
    lock = target.with_name(f".{target.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _acquire(lock, target)
    try:
        yield
    finally:
        # Removed while still held: a waiter then sees that its file is gone and tries again.
        with suppress(OSError):
            lock.unlink()
        os.close(descriptor)


def _acquire(lock: Path, target: Path) -> int:
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _log.info("waiting for another process that prepares %s", target)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_same_file(descriptor, lock):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def working_directory(target: Path) -> Iterator[Path]:
    """A scratch directory next to `target` (same disk, so renames are atomic), always removed.

    The caller holds the lock of `target`, so any scratch directory found here belongs to a
    killed run and is deleted. The name is unique to this run: a worker that outlives its killed
    parent can never write into the directory of the next run.
    """
    for leftover in target.parent.glob(f".{target.name}.partial-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    work = target.with_name(f".{target.name}.partial-{os.urandom(6).hex()}")
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def publishing(target: Path) -> Iterator[Path]:
    """Write a file or a directory so that others see all of it or nothing.

    Args:
        target: Final path; whatever is already there is replaced.

    Yields:
        The path to write to; it does not exist yet, and becomes `target` if the block succeeds.

    Raises:
        DataError: If writing fails; nothing partial stays behind.
    """
    with explained_writes(target), exclusive_lock(target), working_directory(target) as work:
        partial = work / target.name
        yield partial
        rename_into_place(partial, target)


def replace_file(path: Path, chunks: Iterable[bytes]) -> None:
    """Write `chunks` to a temporary file next to `path`, flush it to disk and rename it to `path`.

    A crash leaves either the old or the new file, never a part of it. `chunks` may read from `path`
    itself: the old file stays in place until the rename.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    flush_to_disk(path.parent)  # the rename itself is durable only once its directory is


def publish(path: Path, text: str) -> None:
    """Write a small file of which readers see the old or the new text, never a part.

    Unlike `replace_file` it does not wait for the disk: it is for what concerns running processes.
    """
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def rename_into_place(partial: Path, target: Path) -> None:
    """Flush `partial` (a file or a directory of files) to the disk, then rename it to `target`."""
    files = [partial] if partial.is_file() else [p for p in partial.rglob("*") if p.is_file()]
    for path in files:
        flush_to_disk(path)
    if target.is_dir():
        # A directory cannot be replaced in one step; the old one goes first.
        shutil.rmtree(target)
    partial.replace(target)
    flush_to_disk(target.parent)


def flush_to_disk(path: Path) -> None:
    """Make the kernel write `path` (file or directory) to the disk before the next step."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def forget_pages(folder: Path) -> None:
    """Ask the system to give back the memory in which it keeps the files of a folder.

    What is read of them next is read from the disk, so that its speed can be measured.
    """
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
