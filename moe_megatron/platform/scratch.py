"""One temporary folder for each launch, which holds whatever the processes of a run leave behind.

A process that is killed removes nothing. So all of them get a TMPDIR inside the folder of their
launch, and the launcher removes it; folders of launchers that were killed are removed by the next
one. It does not know what is written there.
"""

import contextlib
import fcntl
import getpass
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "moe_megatron-launch-"


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for the temporary files of this process, and of those that it starts meanwhile."""
    base = Path(tempfile.gettempdir())
    remove_leftovers(base)
    # Short: the path of a socket in it must fit 108 bytes.
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
    changed = {"TMPDIR": str(folder)}
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:  # compiled kernels are worth keeping
        changed["TORCHINDUCTOR_CACHE_DIR"] = str(base / f"torchinductor_{_user()}")
    held = os.open(folder, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)  # the kernel releases it when this process ends
    tempfile.tempdir = str(folder)
    try:
        with environment(changed):
            yield folder
    finally:
        tempfile.tempdir = str(base)
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def remove_leftovers(base: Path) -> None:
    """Remove the folders of launchers that have ended."""
    for folder in base.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.is_dir() and not folder.is_symlink() and folder.stat().st_uid == os.getuid():
                _remove_unless_held(folder)


def _remove_unless_held(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def environment(changed: dict[str, str]) -> Iterator[None]:
    """Set environment variables for processes that are started in the context."""
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
