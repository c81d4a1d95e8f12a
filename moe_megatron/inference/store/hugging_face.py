"""Experts of a Hugging Face folder as it is: one positioned read each, where its matrices adjoin.

Published folders have the matrices of an expert one after the other. The tables of `families/` say
which tensors they are, and the headers where: nothing is converted, and no file is mapped, since
pages of a map count as memory of the process. Everything in the folder is treated as untrusted.
"""

from collections import defaultdict
from pathlib import Path

from torch import Tensor

from moe_megatron.checkpoint.formats import dtypes
from moe_megatron.checkpoint.formats.hf_folder import HfFolder
from moe_megatron.errors import CheckpointError
from moe_megatron.families import family_of
from moe_megatron.families.links import Link, Transform
from moe_megatron.inference.cache.policies import Key
from moe_megatron.inference.quantization.kernels import Dense, dense_pair
from moe_megatron.inference.store.scattered_reads import OpenFiles, Piece, Read, joined

_FIRST, _SECOND = "linear_fc1.weight", "linear_fc2.weight"
_DECODER = "decoder.layers."


class HuggingFaceStore:
    """The experts of a model folder.

    Args:
        path: A folder with `config.json` and safetensors.

    Raises:
        CheckpointError: It is incomplete or damaged, or its experts cannot be read as they are.
        MappingError: There is no table for its family.
    """

    def __init__(self, path: Path) -> None:
        folder = HfFolder(path)
        family = family_of(folder.config)
        geometry = family.geometry(folder.config, folder.tensors)
        matrices: dict[Key, dict[str, Link]] = defaultdict(dict)
        for link in family.links_of(geometry, folder.tensors):
            if link.expert is not None and link.layer is not None and link.key.startswith(_DECODER):
                matrices[link.layer, link.expert][link.key.partition(".experts.experts.")[2]] = link
        if not matrices:
            raise CheckpointError(
                f"{path} is a model without experts, so there are none to read; load it as any "
                "other with transformers."
            )
        self.path = path
        self.layers = tuple(sorted({layer for layer, _ in matrices}))
        self.experts, self.top_k = geometry.experts, geometry.top_k
        first = next(iter(matrices.values()))
        self._check(first)
        self.shapes = _shape(first[_FIRST]), _shape(first[_SECOND])
        self.dtype = folder.tensors[first[_FIRST].blocks[0].name].dtype
        if self.dtype not in dtypes.FLOATS:
            raise CheckpointError(
                f"{path} has experts of {self.dtype}, and only {', '.join(sorted(dtypes.FLOATS))} "
                "are read as they are; convert it with `moe-megatron convert` first."
            )
        self._reads = {key: self._planned(found, folder) for key, found in matrices.items()}
        self.nbytes = sum(rows * columns for rows, columns in self.shapes) * dtypes.item_size(
            self.dtype
        )
        names = (read.file for reads in self._reads.values() for read in reads)
        self._files = OpenFiles(path, names)

    @property
    def keys(self) -> frozenset[Key]:
        """Layers, from 0, and experts."""
        return frozenset(self._reads)

    @property
    def reads_of_an_expert(self) -> int:
        """Positioned reads that an expert takes at most."""
        return max(map(len, self._reads.values()))

    def read_into(self, key: Key, memory: memoryview) -> None:
        """Fill memory of `nbytes` with an expert; several threads may call it.

        Raises:
            CheckpointError: The file is shorter than it was, or cannot be read.
        """
        self._files.read(key, self._reads[key], memory)

    def bytes_to_read(self, key: Key) -> int:
        """Bytes that reading an expert takes."""
        return self.nbytes

    def matrices(self, key: Key, memory: Tensor) -> tuple[Dense, Dense]:
        """Both matrices of an expert that was read into memory, uint8 [nbytes]."""
        return dense_pair(memory, self.shapes, dtypes.to_torch(self.dtype))

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def _check(self, found: dict[str, Link]) -> None:
        blocks = [block for link in found.values() for block in link.blocks]
        if found.keys() != {_FIRST, _SECOND} or any(
            block.transform is not Transform.NONE or block.columns is not None for block in blocks
        ):
            raise CheckpointError(
                f"{self.path}: experts of this family have biases, or another order of numbers in "
                "the file than in memory, and cannot be packed; OptimizedMoEModel reads those of "
                "GPT-OSS as they are, and transformers loads the others."
            )

    def _planned(self, found: dict[str, Link], folder: HfFolder) -> tuple[Read, ...]:
        """The reads of an expert: pieces that follow each other in a file are one."""
        pieces, place = [], 0
        for name, shape in zip((_FIRST, _SECOND), self.shapes, strict=True):
            link = found[name]
            if _shape(link) != shape:
                raise CheckpointError(f"{self.path}: its experts are of different sizes.")
            for block in link.blocks:
                tensor = folder.tensors[block.name]
                if tensor.dtype != self.dtype:
                    raise CheckpointError(
                        f"{self.path}: {block.name} is {tensor.dtype}, and others are "
                        f"{self.dtype}; experts of one type alone can be read one by one."
                    )
                width = shape[1] * dtypes.item_size(tensor.dtype)
                at = tensor.offset + block.start * width
                pieces.append(Piece(tensor.file, at, block.rows * width, place))
                place += block.rows * width
        return joined(pieces)


def _shape(link: Link) -> tuple[int, int]:
    rows, columns = link.shape
    return rows, columns
