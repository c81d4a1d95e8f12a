"""Reads the pickles in checkpoints without executing the code that they name.

An unpickler normally imports and calls every class that a file names, which executes untrusted
code. This one knows the names that Megatron's and torch's checkpoint writers use, replaces each by
an inert stand-in, and refuses every other name. Nothing is imported, not even torch.
"""

import io
import pickle
from pathlib import Path
from typing import Any

from moe_megatron.errors import CheckpointError
from moe_megatron.pickle_names import check_name, is_torch_type
from moe_megatron.pickle_size import check_size
from moe_megatron.reading import read_bytes

_MOST_BYTES = 2**31
"""Of one description; that of a checkpoint of 1,000 GPUs has some hundred megabytes."""


class Inert:
    """Stand-in for an object of a class (or result of a function) that a pickle names."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """Ignore items of a mapping other than a plain dict; they are not needed."""

    def append(self, item: Any) -> None:
        """Ignore items of a sequence other than a plain list; they are not needed."""

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute of the pickled object."""
        return self.state.get(name, default) if isinstance(self.state, dict) else default


class _RestrictedUnpickler(pickle.Unpickler):
    def __init__(self, file: io.BufferedIOBase, what: str) -> None:
        super().__init__(file)
        self._what = what
        self._classes: dict[tuple[str, str], type[Inert]] = {}

    def find_class(self, module: str, name: str) -> Any:
        check_name(module, name, self._what)
        if (module, name) == ("torch", "Size"):
            return tuple
        if is_torch_type(module, name):
            return f"{module}.{name}"
        return self._classes.setdefault((module, name), type(name, (Inert,), {}))

    def persistent_load(self, pid: Any) -> Any:
        return pid  # the description of a storage in a torch.save archive


def load_inert(data: bytes, what: str) -> Any:
    """Unpickle with stand-ins.

    Args:
        data: The pickle.
        what: Name of the file, for errors.

    Returns:
        Plain containers and numbers, with `Inert` objects in place of all other objects.

    Raises:
        CheckpointError: The pickle is damaged, or names anything that checkpoints do not need.
    """
    check_size(data, what)
    try:
        return _RestrictedUnpickler(io.BytesIO(data), what).load()
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle raises anything from IndexError to MemoryError
        raise CheckpointError(
            f"{what} is damaged ({type(error).__name__}: {error}); use another checkpoint."
        ) from None


def load_inert_file(path: Path) -> Any:
    """`load_inert` of a whole file.

    Raises:
        CheckpointError: As `load_inert`, or the file cannot be read.
    """
    try:
        return load_inert(read_bytes(path, _MOST_BYTES), str(path))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
