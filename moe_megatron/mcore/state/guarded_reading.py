"""Lets a run read checkpoints without running code that a file names.

torch reads `.metadata` with an unpickler that imports and calls whatever it names, and objects that
are no tensors with `weights_only=False`. While a run lasts, the first refuses every name that no
checkpoint needs (`pickle_names`), and the second is weights only, with the classes that Megatron
declares safe.
"""

import io
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from torch.distributed.checkpoint import filesystem

from moe_megatron.pickle_names import check_name
from moe_megatron.pickle_size import check_size

_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, what: str) -> None:
        super().__init__(io.BytesIO(data))
        self._what = what

    def find_class(self, module: str, name: str) -> Any:
        check_name(module, name, self._what)
        return super().find_class(module, name)


class _GuardedPickle:
    """The module `pickle`, but for `load`."""

    @staticmethod
    def load(file: IO[bytes]) -> Any:
        what = str(getattr(file, "name", "the metadata of a checkpoint"))
        data = file.read()
        check_size(data, what)
        return _Unpickler(data, what).load()

    def __getattr__(self, name: str) -> Any:
        return getattr(pickle, name)


@contextmanager
def guarded_reading() -> Iterator[None]:
    """Refuse pickles with code in them for as long as the context is open.

    Raises:
        CheckpointError: While a checkpoint is loaded whose metadata names anything else.
    """
    reader: Any = filesystem
    module, variable = reader.pickle, os.environ.get(_WEIGHTS_ONLY)
    reader.pickle = _GuardedPickle()
    os.environ[_WEIGHTS_ONLY] = "1"
    try:
        yield
    finally:
        reader.pickle = module
        if variable is None:
            del os.environ[_WEIGHTS_ONLY]
        else:
            os.environ[_WEIGHTS_ONLY] = variable
