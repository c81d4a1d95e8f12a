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

_DCP = "torch.distributed.checkpoint"
_ALLOWED: frozenset[tuple[str, str]] = frozenset(
    (module, name)
    for module, names in {
        f"{_DCP}.metadata": "Metadata TensorStorageMetadata BytesStorageMetadata "
        "ChunkStorageMetadata TensorProperties MetadataIndex StorageMeta _MEM_FORMAT_ENCODING",
        f"{_DCP}.filesystem": "_StorageInfo _StoragePrefix",
        f"{_DCP}.planner": "SavePlan WriteItem WriteItemType TensorWriteData",
        "torch": "Size device Tensor BFloat16Storage HalfStorage FloatStorage DoubleStorage "
        "ByteStorage CharStorage ShortStorage IntStorage LongStorage BoolStorage",
        "torch.storage": "UntypedStorage",
        "torch.serialization": "_get_layout",
        "torch._utils": "_rebuild_tensor_v2 _rebuild_tensor_v3 _rebuild_parameter",
        "collections": "OrderedDict",
        "builtins": "set frozenset slice complex bytearray",
        "pathlib": "PosixPath PurePosixPath Path",
        "pathlib._local": "PosixPath PurePosixPath Path",
        "argparse": "Namespace",
        "types": "SimpleNamespace",
        "signal": "Signals",
        "numpy": "ndarray dtype",
        "numpy.dtypes": "UInt32DType",
        "numpy.core.multiarray": "_reconstruct scalar",
        "numpy._core.multiarray": "_reconstruct scalar",
        "_codecs": "encode",
        "megatron.core.enums": "ModelType",
        "megatron.core.optimizer.optimizer_config": "OptimizerConfig",
        "megatron.core.rerun_state_machine": "RerunDiagnostic RerunMode RerunState",
        "megatron.core.transformer.enums": "AttnBackend AttnMaskType CudaGraphModule "
        "CudaGraphScope InferenceCudaGraphScope LayerType",
    }.items()
    for name in names.split()
)

_TORCH_TYPES = frozenset(
    "bool uint8 int8 int16 int32 int64 uint16 uint32 uint64 float16 bfloat16 float32 float64 "
    "float8_e4m3fn float8_e5m2 float8_e8m0fnu complex64 complex128 strided contiguous_format "
    "preserve_format channels_last".split()
)


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
        is_type = module == "torch" and name in _TORCH_TYPES
        if not is_type and (module, name) not in _ALLOWED:
            raise CheckpointError(
                f"{self._what} names {module}.{name}, which no Megatron checkpoint needs: reading "
                "it could execute code by whoever wrote the file. It is not read; use a checkpoint "
                "that you trust."
            )
        if (module, name) == ("torch", "Size"):
            return tuple
        if is_type:
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
        return load_inert(path.read_bytes(), str(path))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
