"""Sends what torch and Megatron warn of to a log: it is about their code, and not the user's.

Loading one checkpoint takes a dozen such warnings. Warnings from any other file are shown as
always.
"""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import megatron.core
import torch

_LIBRARIES = tuple(
    f"{Path(path).parents[levels]}/"
    for path, levels in ((torch.__file__, 0), (megatron.core.__file__, 1))
)


class _Writes(Protocol):
    def write(self, text: str, /) -> int: ...


@contextlib.contextmanager
def library_warnings_to(file: _Writes) -> Iterator[None]:
    """Write the libraries' warnings to a file while the context is open."""
    original = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        *rest: Any,
        **named: Any,
    ) -> None:
        if filename.startswith(_LIBRARIES):
            file.write(warnings.formatwarning(message, category, filename, lineno))
        else:
            original(message, category, filename, lineno, *rest, **named)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = original
