"""Bytecode for the processes of a run, where the environment keeps Python from writing it.

Many containers set PYTHONDONTWRITEBYTECODE. Every rank would then compile torch and Megatron at
each start, which takes twice as long as all else that importing them does. It does not know who is
started.
"""

import importlib.util
import os
import sys
from pathlib import Path

_FORBIDS = "PYTHONDONTWRITEBYTECODE"
_FOLDER = "PYTHONPYCACHEPREFIX"


def keep_bytecode() -> None:
    """Let processes that are started from now on keep bytecode in the virtual environment.

    Not beside the sources, which is what the variable is there for. Nothing changes where bytecode
    is written anyway, is there already, or has no virtual environment that can be written: whoever
    can write to that may also change the code itself.
    """
    if not os.environ.get(_FORBIDS) or os.environ.get(_FOLDER) or _is_compiled("torch"):
        return
    if sys.prefix == sys.base_prefix or not os.access(sys.prefix, os.W_OK):
        return
    del os.environ[_FORBIDS]
    os.environ[_FOLDER] = str(Path(sys.prefix) / "bytecode")


def _is_compiled(package: str) -> bool:
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        return True
    return Path(importlib.util.cache_from_source(found.origin)).exists()
