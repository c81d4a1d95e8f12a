"""Functions in C that are compiled on the machine that runs them, once.

Where that does not work, for want of a compiler for example, a warning says so and the caller
computes the same with torch. The library lies in the cache, under a name that stands for source,
compiler, processor and user: machines that share a home directory do not share libraries that
only some of them can run, and nobody loads what another user put there.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
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
"""Types of what kernels are given."""

_FLAGS = "-O3 -march=native -fno-math-errno -fno-trapping-math -fPIC -fopenmp"
_SECONDS = 60

_log = logging.getLogger(__name__)


def library(source: Path, **arguments: Sequence[type]) -> Callable[[], ctypes.CDLL | None]:
    """The functions of a C file, compiled and loaded when they are first asked for.

    `CC` names the compiler, else the first of cc, gcc and clang is taken.

    Args:
        source: The file. It may include headers that lie beside it. Its loops may be OpenMP's; they
            run on the threads of torch.
        arguments: For each function, the types of what it is given; it returns a number or nothing.

    Returns:
        A function that gives the loaded library; None where it cannot be had, which a warning
        explains once, and where accelerators are switched off.
    """
    load = functools.cache(lambda: _loaded(source, arguments))
    return lambda: load() if fast.enabled("kernels") else None


def _loaded(source: Path, arguments: Mapping[str, Sequence[type]]) -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(_built(source)))
    except (DataError, OSError, _NotCompiledError) as error:
        if world.rank() == 0:
            _note_once(str(error))
        return None
    for name, types in arguments.items():
        function = getattr(library, name)
        function.argtypes, function.restype = list(types), SIZE
    return library


@functools.cache
def _note_once(why: str) -> None:
    _log.warning("C is not compiled (%s): torch computes the same in more steps.", why)


def call(loaded: ctypes.CDLL | None, function: str, *values: torch.Tensor | int) -> int:
    """Call a function of a library that was loaded.

    Args:
        loaded: What `library` gave.
        function: Its name.
        values: Numbers, and tensors, which must be contiguous: it is given their address.

    Returns:
        What it returns; anything, if that is nothing.
    """
    given = (v.data_ptr() if isinstance(v, torch.Tensor) else v for v in values)
    return int(getattr(loaded, function)(*given))


class _NotCompiledError(Exception):
    pass


def _built(source: Path) -> Path:
    compiler = c_compiler()
    if not compiler:
        raise _NotCompiledError(f"found none of {', '.join(COMPILERS)}")
    texts = [path.read_text() for path in (source, *sorted(source.parent.glob("*.h")))]
    key = "\n".join((*texts, *compiler, _FLAGS, _processor(), str(os.getuid())))
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    library = default_cache_dir() / "compiled" / f"{source.stem}-{digest}.so"
    if library.exists():
        status = library.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise _NotCompiledError(f"{library} is not this user's alone; remove it")
        return library
    # No lock: ranks that come here together compile the same, and the last one's stays.
    with explained_writes(library):
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            unit, partial = Path(folder, "unit.o"), Path(folder, library.name)
            _run([*compiler, *_FLAGS.split(), "-c", str(source), "-o", str(unit)])
            # Without -fopenmp: a library of its own would bring threads besides those of torch.
            _run([*compiler, "-shared", str(unit), "-o", str(partial)])
            partial.chmod(0o755)
            rename_into_place(partial, library)
    return library


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
    """What tells processors apart for which a compiler makes different code."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
