"""What a store of packed experts says of itself, in `experts.json`, and of which model it is.

The file is written last: a store without one is not there. A model is recognised by names, types,
shapes and both ends of its tensors, those of experts apart from all others, so that a folder that
keeps no experts is recognised, too.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from moe_megatron.checkpoint.formats import dtypes
from moe_megatron.checkpoint.formats.byte_ranges import read_into
from moe_megatron.checkpoint.formats.hf_folder import HfFolder, TensorInfo
from moe_megatron.errors import CheckpointError
from moe_megatron.locations import Location, reason_of
from moe_megatron.reading import parse_json, read_bytes

ABOUT = "experts.json"
_PATIENCE = {"max_retries": 4, "initial_delay": "100ms", "max_delay": "1s"}
"""TensorStore would try 32 times, for minutes, and a request waits for it."""
_FORMAT = "moe-megatron-experts-1"
_EXPERT = re.compile(r"\.experts\.")
_SAMPLE = 4096
_MOST = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class About:
    """A store of packed experts."""

    family: str
    layers: tuple[int, ...]
    """Layers with experts, from 0; the rows of the array."""
    experts: int
    top_k: int
    shapes: tuple[tuple[int, int], tuple[int, int]]
    """Of an expert's first and second matrix."""
    dtype: str
    """Of all their numbers, as safetensors spells it."""
    others_digest: str
    """Of the tensors that are no experts, in the folder that it was packed from."""
    experts_digest: str

    @property
    def nbytes(self) -> int:
        """Bytes of an expert."""
        return sum(rows * columns for rows, columns in self.shapes) * dtypes.item_size(self.dtype)

    @property
    def array(self) -> str:
        """Name of the array: another model's has another one, whoever packs at the same time."""
        return f"experts-{self.experts_digest[:16]}.zarr"

    def text(self) -> str:
        """The content of `experts.json`."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, indent=2) + "\n"


@cache
def context() -> Any:
    """What all stores of a process share in TensorStore; credentials are looked for once."""
    import tensorstore as ts

    return ts.Context({"s3_request_retries": _PATIENCE, "gcs_request_retries": _PATIENCE})


def digests(folder: HfFolder) -> tuple[str, str | None]:
    """Of the tensors that are no experts, and of those that are; None: it keeps none.

    Raises:
        CheckpointError: A file became shorter.
    """
    experts = [it for it in folder.tensors.values() if _EXPERT.search(it.name)]
    others = [it for it in folder.tensors.values() if not _EXPERT.search(it.name)]
    return _sampled(folder, others), _sampled(folder, experts) if experts else None


def read_about(location: Location) -> About | None:
    """The description of a store; None: there is no store, or not all of it.

    Raises:
        CheckpointError: It cannot be read, or is none.
    """
    import tensorstore as ts

    try:
        if location.folder is not None:
            data = read_bytes(location.folder / ABOUT, _MOST)
        else:
            place = ts.KvStore.open(location.kvstore, context=context()).result()
            found = place.read(ABOUT).result()
            if found.state != "value":
                return None
            data = found.value
        return _checked(parse_json(data))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{location.text}/{ABOUT} cannot be read: {error}.") from error
    except ValueError as error:
        raise CheckpointError(
            f"{location.text}/{ABOUT} cannot be read: {reason_of(error)}. Check the address and "
            "the credentials of the environment, or pack the experts again with `moe-megatron "
            "cache pack`."
        ) from error


def _checked(found: Any) -> About:
    if not isinstance(found, dict) or found.pop("format", None) != _FORMAT:
        raise ValueError("it does not describe a store of experts")
    try:
        first, second = (_sizes(shape, 2) for shape in found.pop("shapes"))
        about = About(layers=_sizes(found.pop("layers")), shapes=(first, second), **found)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"its fields are not those of a store: {error}") from error
    words = (about.family, about.dtype, about.others_digest, about.experts_digest)
    if not all(isinstance(it, str) for it in words) or about.dtype not in dtypes.FLOATS:
        raise ValueError("its type or its digests are none")
    if not re.fullmatch("[0-9a-f]{32}", about.experts_digest):
        raise ValueError("its digest is none")
    _sizes([about.experts, about.top_k])
    return about


def _sizes(found: Any, length: int | None = None) -> Any:
    """Whole numbers."""
    if not isinstance(found, list) or length not in (None, len(found)):
        raise ValueError("a list of whole numbers is needed")
    if not all(type(it) is int and 0 <= it < 2**40 for it in found):
        raise ValueError("whole numbers are needed")
    return tuple(found)


def _sampled(folder: HfFolder, tensors: Iterable[TensorInfo]) -> str:
    """A digest of names, types, shapes, and of the first and last bytes of each tensor."""
    digest = hashlib.blake2b(digest_size=16)
    files: dict[str, int] = {}
    try:
        for it in sorted(tensors, key=lambda it: it.name):
            if it.file not in files:
                files[it.file] = os.open(folder.path / it.file, os.O_RDONLY | os.O_CLOEXEC)
            digest.update(f"{it.name} {it.dtype} {it.shape}\n".encode())
            size = min(_SAMPLE, it.nbytes)
            for at in (it.offset, it.offset + it.nbytes - size):
                sample = memoryview(bytearray(size))
                if read_into(files[it.file], at, sample) < size:
                    raise CheckpointError(f"{folder.path / it.file} became shorter.")
                digest.update(sample)
    finally:
        for descriptor in files.values():
            os.close(descriptor)
    return digest.hexdigest()
