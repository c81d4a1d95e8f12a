"""C functions that are compiled once, on the machine that runs them.

Where compiling fails, for example without a compiler, a warning says so and the caller computes the
same with torch. The library is cached under a hash of source, compiler, processor and user, so that
machines with a common home directory do not share libraries that only some of them can run, and
nobody loads a file that another user wrote. A library ends with a checksum of itself: one that is
damaged is compiled anew, for a cut one would end the process when it is loaded.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import stat
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from moe_megatron.errors import DataError
from moe_megatron.files import default_cache_dir, explained_writes, rename_into_place
from moe_megatron.mcore import world
from moe_megatron.mcore.cpu import fast
from moe_megatron.platform.compiler import COMPILERS, c_compiler

POINTER, SIZE = ctypes.c_void_p, ctypes.c_int64
"""Argument types of the kernels."""

_FLAGS = "-O3 -march=native -fno-math-errno -fno-trapping-math -fPIC -fopenmp"
_SECONDS = 60
_SUM = b"\nsha256 "
"""Before the checksum, in hexadecimal, at the end of a library; loaders ignore what follows."""
_OF_OTHERS = stat.S_IWGRP | stat.S_IWOTH

_log = logging.getLogger(__name__)


def library(source: Path, **arguments: Sequence[type]) -> Callable[[], ctypes.CDLL | None]:
    """The functions of a C file, compiled and loaded on first use.

    `CC` names the compiler; by default it is the first of cc, gcc and clang that is installed.

    Args:
        source: The C file. It may include headers from its own folder, and use OpenMP loops, which
            run on torch's threads.
        arguments: Argument types of each function. A function returns an integer or nothing.

    Returns:
        A function that returns the loaded library, or None where it cannot be compiled (which a
        warning explains once) or kernels are switched off.
    """
    load = functools.cache(lambda: _loaded(source, arguments))
    return lambda: load() if fast.enabled("kernels") else None


def _loaded(source: Path, arguments: Mapping[str, Sequence[type]]) -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(_built(source))
    except (DataError, OSError, _NotCompiledError) as error:
        if world.rank() == 0:
            _warn_once(str(error))
        return None
    for name, types in arguments.items():
        function = getattr(library, name)
        function.argtypes, function.restype = list(types), SIZE
    return library


@functools.cache
def _warn_once(why: str) -> None:
    _log.warning("C kernels cannot be compiled (%s); torch computes the same, more slowly.", why)


def call(loaded: ctypes.CDLL | None, function: str, *values: torch.Tensor | int) -> int:
    """Call a function of a loaded library.

    Args:
        loaded: The library, as the function from `library` returned it.
        function: Name of the C function.
        values: Its arguments: integers, and contiguous tensors, which are passed by address.

    Returns:
        The result of the function; meaningless if it returns nothing.
    """
    arguments = (v.data_ptr() if isinstance(v, torch.Tensor) else v for v in values)
    return int(getattr(loaded, function)(*arguments))


class _NotCompiledError(Exception):
    pass


def _built(source: Path) -> str:
    """The path of a library that nobody else can change from now on."""
    compiler = c_compiler()
    if not compiler:
        raise _NotCompiledError(f"found none of {', '.join(COMPILERS)}")
    texts = [path.read_text() for path in (source, *sorted(source.parent.glob("*.h")))]
    key = "\n".join((*texts, *compiler, _FLAGS, _processor(), str(os.geteuid())))
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    library = default_cache_dir() / "compiled" / f"{source.stem}-{digest}.so"
    with explained_writes(library):
        library.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = _private_folder(library.parent)
    try:
        for attempt in range(2):
            if attempt or not library.exists():
                _compile(compiler, source, library)
            file = _private_file(library, folder)
            if _is_whole(file):
                return f"/proc/self/fd/{file}"
            os.close(file)
        raise _NotCompiledError(f"{library} is damaged as soon as it is written; check the disk")
    finally:
        os.close(folder)


def _compile(compiler: Sequence[str], source: Path, library: Path) -> None:
    # No lock: ranks that get here together compile identical files, and the last rename wins.
    with explained_writes(library), tempfile.TemporaryDirectory(dir=library.parent) as folder:
        unit, partial = Path(folder, "unit.o"), Path(folder, library.name)
        _run([*compiler, *_FLAGS.split(), "-c", str(source), "-o", str(unit)])
        # Linked without -fopenmp: a second OpenMP library would start threads beside torch's.
        _run([*compiler, "-shared", str(unit), "-o", str(partial)])
        with partial.open("ab") as file:
            file.write(_sum_of(partial.read_bytes()))
        partial.chmod(0o755)
        rename_into_place(partial, library)


def _private_folder(path: Path) -> int:
    """A descriptor of the cache's folder, in which nobody else can create or rename files."""
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise _NotCompiledError(f"{path} is not a folder of this user: {error.strerror}") from None
    status = os.fstat(folder)
    if status.st_uid == os.geteuid() and status.st_mode & _OF_OTHERS:
        # Made where the mask lets the group write. What somebody has put there is not ours.
        os.fchmod(folder, 0o700)
    elif status.st_uid != os.geteuid():
        os.close(folder)
        raise _NotCompiledError(f"{path} is not this user's alone; remove it")
    return folder


def _sum_of(data: bytes) -> bytes:
    return _SUM + hashlib.sha256(data).hexdigest().encode()


def _is_whole(file: int) -> bool:
    """Whether a library is what was written."""
    data = os.pread(file, os.fstat(file).st_size, 0)
    length = len(data) - len(_sum_of(b""))
    return length > 0 and data[length:] == _sum_of(data[:length])


def _private_file(library: Path, folder: int) -> int:
    """A descriptor of a file that nobody else can change; no rename gives it another content.

    The library is loaded by the descriptor's name. It stays open, as the loader takes equal names
    for one library.
    """
    file = os.open(library.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    status = os.fstat(file)
    mine = status.st_uid == os.geteuid() and not status.st_mode & _OF_OTHERS
    if not mine or not stat.S_ISREG(status.st_mode):
        os.close(file)
        raise _NotCompiledError(f"{library} is not this user's alone; remove it")
    return file


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise _NotCompiledError(f"{command[0]} took more than {_SECONDS} seconds") from None
    except OSError as error:
        raise _NotCompiledError(f"{command[0]}: {error.strerror}") from None
    if done.returncode:
        lines = [*done.stderr.splitlines(), f"exit code {done.returncode}"]
        why = next((line for line in lines if " error: " in line), lines[0])
        raise _NotCompiledError(f"{command[0]}: {why}")


def _processor() -> str:
    """Text that differs between processors for which -march=native produces different code."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
