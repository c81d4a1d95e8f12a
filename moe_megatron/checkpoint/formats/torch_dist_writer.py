"""Plans the layout of a Megatron `torch_dist` checkpoint.

Each chunk of a tensor becomes a torch.save archive. torch itself produces the bytes around the
data, once for each shape, so that they are right for the installed version of torch. Several keys
may name the same record: Megatron's two layer specs have different names for the same norm.
"""

import io
import json
import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

from moe_megatron.checkpoint.formats import dtypes
from moe_megatron.checkpoint.formats.torch_dist import COMMON_STATE, Sizes
from moe_megatron.errors import CheckpointError

_FILE_BYTES = 2**30
"""Target size of a file; with several files, workers do not wait for each other."""
_MOST_FILES = 64


class _GapSink(io.BytesIO):
    """Keeps what torch writes before and after the gap that it leaves for the data."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = [bytearray()]
        self.gap = 0

    def write(self, data: Any) -> int:
        self.parts[-1] += data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        assert whence == io.SEEK_CUR, "torch skips the data"
        assert len(self.parts) == 1, "an archive of a tensor has one gap"
        self.gap = offset
        self.parts.append(bytearray())
        return 0


@cache
def skeleton(sizes: Sizes, dtype: str) -> tuple[bytes, bytes]:
    """The bytes before and after the data in an archive of one tensor.

    Raises:
        CheckpointError: The installed torch writes archives differently.
    """
    import torch

    sink = _GapSink()
    with torch.serialization.skip_data():
        # Its memory is never touched and so never allocated, whatever its size.
        torch.save(torch.empty(sizes, dtype=dtypes.to_torch(dtype)), sink)
    if sink.gap != prod(sizes) * dtypes.item_size(dtype) or len(sink.parts) != 2:
        raise CheckpointError(
            f"torch {torch.__version__} writes its files in an unknown layout; install a version "
            "that pyproject.toml allows."
        )
    return bytes(sink.parts[0]), bytes(sink.parts[1])


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A chunk of a tensor and its position."""

    keys: tuple[str, ...]
    dtype: str
    shape: Sizes
    """Shape of the whole tensor."""
    offsets: Sizes
    sizes: Sizes
    file: int
    offset: int

    @property
    def around(self) -> tuple[bytes, bytes]:
        """Bytes before and after the data."""
        return skeleton(self.sizes, self.dtype)

    @property
    def data(self) -> int:
        """Offset of the data in the file."""
        return self.offset + len(self.around[0])

    @property
    def length(self) -> int:
        """Size of the archive in bytes."""
        head, tail = self.around
        return len(head) + prod(self.sizes) * dtypes.item_size(self.dtype) + len(tail)


@dataclass(frozen=True, slots=True)
class ObjectRecord:
    """A pickled object and its position."""

    keys: tuple[str, ...]
    content: bytes
    file: int
    offset: int


class Layout:
    """Places records one after another, and produces the metadata for them.

    Args:
        total: Approximate number of bytes of data, which determines the number of files.
    """

    def __init__(self, total: int) -> None:
        files = min(_MOST_FILES, max(1, round(total / _FILE_BYTES)))
        self._limit = total / files
        self._sizes = [0]
        self.tensors: list[TensorRecord] = []
        self.objects: list[ObjectRecord] = []

    @property
    def files(self) -> tuple[tuple[str, int], ...]:
        """Names and sizes of the files."""
        return tuple((_file_name(number), size) for number, size in enumerate(self._sizes))

    def add_tensor(
        self, keys: tuple[str, ...], dtype: str, shape: Sizes, offsets: Sizes, sizes: Sizes
    ) -> TensorRecord:
        """Place a chunk of a tensor."""
        if self._sizes[-1] >= self._limit:
            self._sizes.append(0)
        file, offset = len(self._sizes) - 1, self._sizes[-1]
        record = TensorRecord(keys, dtype, shape, offsets, sizes, file, offset)
        self._sizes[-1] += record.length
        self.tensors.append(record)
        return record

    def add_object(self, keys: Iterable[str], content: bytes) -> ObjectRecord:
        """Place a pickled object."""
        file, offset = len(self._sizes) - 1, self._sizes[-1]
        record = ObjectRecord(tuple(keys), content, file, offset)
        self._sizes[-1] += len(content)
        self.objects.append(record)
        return record

    def metadata(self) -> bytes:
        """The `.metadata` file."""
        import torch
        from torch.distributed.checkpoint import metadata as dcp
        from torch.distributed.checkpoint.filesystem import _StorageInfo

        described: dict[str, Any] = {}
        storage: dict[Any, Any] = {}
        for record in self.tensors:
            offsets, sizes = torch.Size(record.offsets), torch.Size(record.sizes)
            box = dcp.ChunkStorageMetadata(offsets=offsets, sizes=sizes)
            info = _StorageInfo(_file_name(record.file), record.offset, record.length)
            for key in record.keys:
                if key not in described:
                    described[key] = dcp.TensorStorageMetadata(
                        properties=dcp.TensorProperties(dtype=dtypes.to_torch(record.dtype)),
                        size=torch.Size(record.shape),
                        chunks=[],
                    )
                described[key].chunks.append(box)
                storage[dcp.MetadataIndex(key, offsets)] = info
        for thing in self.objects:
            info = _StorageInfo(_file_name(thing.file), thing.offset, len(thing.content))
            for key in thing.keys:
                described[key] = dcp.BytesStorageMetadata()
                storage[dcp.MetadataIndex(key)] = info
        whole = dcp.Metadata(
            state_dict_metadata=described,
            planner_data=None,
            storage_data=storage,
            storage_meta=dcp.StorageMeta(),
        )
        return pickle.dumps(whole)


def backend_text() -> bytes:
    """The content of `metadata.json`, by which Megatron recognises the format."""
    return json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1}).encode()


def common_state(arguments: dict[str, Any]) -> tuple[tuple[str, ...], bytes]:
    """Key and content of everything that is not a tensor.

    Args:
        arguments: The arguments that Megatron compares when it loads.
    """
    from argparse import Namespace

    state = {
        # Tells Megatron that there is no optimizer and no random state to load.
        "args": Namespace(no_save_optim=True, no_save_rng=True, **arguments),
        "checkpoint_version": 3.0,
        "iteration": 0,
        "num_floating_point_operations_so_far": 0,
        "content_metadata": {
            "singleton_local_shards": False,
            "chained_optim_avoid_prefix": True,
            "distrib_optim_sharding_type": "fully_reshardable",
            "distrib_optim_fully_reshardable_mem_efficient": False,
        },
    }
    return (COMMON_STATE,), pickled([state])


def extra_states(matrices: Iterable[tuple[str, Sizes, Sizes]]) -> list[str]:
    """Keys of the extra states that Transformer Engine expects in addition to its weights.

    Args:
        matrices: Name of each weight, its index along the leading axes, and the sizes of these.
    """
    found: dict[str, None] = {}
    for name, index, sizes in matrices:
        module, _, _ = name.rpartition(".")
        if module.startswith("embedding") or module.endswith("router"):
            continue
        shard = f"shard_{_dotted(index or (0,))}_{_dotted(sizes or (1,))}"
        found[f"{module}._extra_state/{shard}"] = None
        attention, is_projection, _ = module.partition(".linear_proj")
        if is_projection:
            found[f"{attention}.core_attention._extra_state/{shard}"] = None
    return list(found)


def pickled(thing: object) -> bytes:
    """A torch.save archive of a small object."""
    import torch

    sink = io.BytesIO()
    torch.save(thing, sink)
    return sink.getvalue()


def _dotted(numbers: Sequence[int]) -> str:
    return ".".join(map(str, numbers))


def _file_name(number: int) -> str:
    return f"__0_{number}.distcp"
