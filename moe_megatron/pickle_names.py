"""The classes and functions that pickles in Megatron's and torch's checkpoints name, as data.

An unpickler imports and calls whatever a file names, which executes the code of whoever wrote it.
Readers of checkpoints refuse every name that is not listed here; none of these runs code of a file.
"""

from moe_megatron.errors import CheckpointError

_DCP = "torch.distributed.checkpoint"
ALLOWED: frozenset[tuple[str, str]] = frozenset(
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


def is_torch_type(module: str, name: str) -> bool:
    """Whether this is a dtype, layout or memory format of torch."""
    return module == "torch" and name in _TORCH_TYPES


def refusal(name: str, what: str) -> CheckpointError:
    """The error about a name that no checkpoint needs.

    Args:
        name: Class or function, with its module.
        what: The file that names it.
    """
    return CheckpointError(
        f"{what} names {name}, which no Megatron checkpoint needs: reading it could execute code "
        "by whoever wrote the file. It is not read; use a checkpoint that you trust."
    )


def check_name(module: str, name: str, what: str) -> None:
    """Refuse a name that no checkpoint needs.

    Args:
        module: Module that the pickle names.
        name: Class or function in it.
        what: The file, for the message.

    Raises:
        CheckpointError: The name is not one of those that Megatron and torch write.
    """
    if (module, name) not in ALLOWED and not is_torch_type(module, name):
        raise refusal(f"{module}.{name}", what)
