"""Packed experts in a folder or a bucket: a zarr array of bytes, one chunk an expert.

TensorStore fetches a chunk with one request and checks its CRC32C. The array is opened with the
layout that the model asks for, so that what is there cannot make a chunk larger. TensorStore is
imported on first use: it takes half a second.
"""

import stat
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from moe_megatron.checkpoint.formats import dtypes
from moe_megatron.checkpoint.formats.hf_folder import HfFolder
from moe_megatron.errors import CheckpointError
from moe_megatron.families import family_of
from moe_megatron.inference.cache.policies import Key
from moe_megatron.inference.quantization.kernels import Dense, dense_pair
from moe_megatron.inference.quantization.names import FIRST, SECOND
from moe_megatron.inference.store.about import ABOUT, About, context, digests, read_about
from moe_megatron.locations import Location, parse_location, reason_of

_DECODER = "decoder.layers."
_CHECKSUM = 4
"""Bytes after those of an expert."""


class ZarrStore:
    """The experts of a model, in a place that `moe-megatron cache pack` has filled.

    Args:
        address: A folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX.
        model: The model's folder, which may be without experts.

    Raises:
        CheckpointError: There is no complete store, or it is of another model.
        ConfigError: The address is none.
    """

    def __init__(self, address: str, model: Path) -> None:
        self._location = parse_location(address, "experts")
        about = read_about(self._location)
        if about is None:
            raise CheckpointError(
                f"{self._location.text} has no {ABOUT}, which a store of experts gets when it is "
                f"complete; pack the experts with `moe-megatron cache pack MODEL {address}`."
            )
        _check_model(about, model, self._location)
        if self._location.folder is not None:
            _check_files(self._location.folder / about.array, about.nbytes + _CHECKSUM)
        self.path = model
        self.layers, self.experts, self.top_k = about.layers, about.experts, about.top_k
        self.shapes, self.dtype, self.nbytes = about.shapes, about.dtype, about.nbytes
        self._row = {layer: row for row, layer in enumerate(about.layers)}
        self._array = open_array(self._location, about, create=False)

    @property
    def keys(self) -> frozenset[Key]:
        """Layers, from 0, and experts."""
        return frozenset((layer, it) for layer in self.layers for it in range(self.experts))

    def bytes_to_read(self, key: Key) -> int:
        """Bytes that reading an expert takes."""
        return self.nbytes

    def read_into(self, key: Key, memory: memoryview) -> None:
        """Fill memory of `nbytes` with an expert; several threads may call it.

        Raises:
            CheckpointError: It is missing or damaged, or the bucket does not answer.
        """
        import tensorstore as ts

        layer, expert = key
        there = ts.array(np.frombuffer(memory, np.uint8))  # shares the memory
        try:
            there.write(self._array[self._row[layer], expert]).result()
        except ValueError as error:
            raise CheckpointError(
                f"{self._location.text}: expert {expert} of layer {layer + 1} cannot be read: "
                f"{reason_of(error)}. Restore it, or pack the experts again to another place."
            ) from error

    def matrices(self, key: Key, memory: Tensor) -> tuple[Dense, Dense]:
        """Both matrices of an expert that was read into memory, uint8 [nbytes]."""
        return dense_pair(memory, self.shapes, dtypes.to_torch(self.dtype))

    def close(self) -> None:
        """Nothing stays open between reads."""


def open_array(location: Location, about: About, *, create: bool) -> Any:
    """The array [layers, experts, bytes] of a store.

    Raises:
        CheckpointError: It is not there, or of another shape, or the bucket does not answer.
    """
    import tensorstore as ts

    shape = [len(about.layers), about.experts, about.nbytes]
    spec = {
        "driver": "zarr3",
        "kvstore": location.below(about.array),
        "metadata": {
            "shape": shape,
            "data_type": "uint8",
            "fill_value": 0,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [1, 1, about.nbytes]},
            },
            "codecs": [{"name": "bytes"}, {"name": "crc32c"}],
        },
        "recheck_cached_data": False,
        "recheck_cached_metadata": False,
        # An expert of zeros is one, and one that is missing is none.
        "store_data_equal_to_fill_value": True,
        "fill_missing_data_reads": False,
    }
    try:
        return ts.open(spec, context=context(), open=True, create=create).result()
    except ValueError as error:
        raise CheckpointError(
            f"{location.text}/{about.array} cannot be {'written' if create else 'opened'}: "
            f"{reason_of(error)}."
        ) from error


def _check_model(about: About, path: Path, location: Location) -> None:
    """Refuse a store that was packed from another model."""
    folder = HfFolder(path)
    family = family_of(folder.config)
    geometry = family.geometry(folder.config, folder.tensors)
    shapes = {
        link.key.partition(".experts.experts.")[2]: link.shape
        for link in family.links(geometry)
        if link.expert == 0 and link.key.startswith(_DECODER)
    }
    layers = tuple(number for number, moe in enumerate(geometry.moe_layers) if moe)
    wanted = {
        "layers with experts": (layers, about.layers),
        "experts of a layer": (geometry.experts, about.experts),
        "experts of a token": (geometry.top_k, about.top_k),
        "shapes": ((shapes.get(FIRST), shapes.get(SECOND)), about.shapes),
    }
    others, experts = digests(folder)
    wanted["digest of what is no expert"] = others, about.others_digest
    if experts is not None:
        wanted["digest of the experts"] = experts, about.experts_digest
    for what, (here, there) in wanted.items():
        if here != there:
            raise CheckpointError(
                f"{location.text} has the experts of another model than {path}: {what}: {there} "
                f"there, {here} here; give the model that they were packed from, or pack this "
                "one's to another place."
            )


def _check_files(folder: Path, most: int) -> None:
    """Refuse what TensorStore would wait for, or read into more memory than an expert takes."""
    for path in folder.rglob("*"):
        found = path.lstat()
        if stat.S_ISDIR(found.st_mode):
            continue
        if not stat.S_ISREG(found.st_mode) or found.st_size > max(most, 2**20):
            raise CheckpointError(
                f"{path} is no regular file, or has more bytes than an expert ({most:,}); restore "
                "the store from a copy."
            )
