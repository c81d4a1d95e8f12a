"""Plans a Hugging Face folder from a Megatron checkpoint and links."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from moe_megatron.checkpoint.formats import dtypes
from moe_megatron.checkpoint.formats.hf_folder import INDEX
from moe_megatron.checkpoint.formats.hf_writer import NewTensor, Shard, index_text, lay_out
from moe_megatron.checkpoint.formats.torch_dist import (
    FoundMatrix,
    SavedTensor,
    TorchDist,
)
from moe_megatron.checkpoint.plan import blocks, coverage
from moe_megatron.checkpoint.plan.summary import summarize
from moe_megatron.checkpoint.plan.tasks import Move, Plan, SourceFile, TargetFile, Task, fill
from moe_megatron.config.checks import first_few
from moe_megatron.errors import CheckpointError, MappingError
from moe_megatron.families.links import Block, Link, matrix_size, saved_names

_NOT_WEIGHTS = re.compile(
    r"(.*\.)?(optimizer|chained_\d+)\..*|rng_state.*|rerun_state.*|.*_extra_state(/.*)?"
    r"|.*\.lora_(A|B|magnitude)"
)


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of an export."""

    dtype: str | None = None
    """Type of all floating-point weights; None keeps the type of each."""
    dtypes: Mapping[str, str] = field(default_factory=dict)
    """Types of individual tensors, used if `dtype` is None."""
    max_shard_bytes: int | None = None
    tables: tuple[tuple[str, Callable[[], bytes]], ...] = ()
    """Names and contents of additional small files."""


def plan_export(saved: TorchDist, links: Sequence[Link], options: ExportOptions) -> Plan:
    """Plan a Hugging Face folder.

    Args:
        saved: The source.
        links: All links of the model.
        options: Options of the export.

    Raises:
        MappingError: The checkpoint lacks a matrix, or holds one that would be lost.
        CheckpointError: It is damaged, or parts of one tensor have different types.
    """
    return _Exporter(saved, links, options).plan()


class _Exporter:
    def __init__(self, saved: TorchDist, links: Sequence[Link], options: ExportOptions) -> None:
        self._saved, self._links, self._options = saved, links, options

    def plan(self) -> Plan:
        written, shapes = self._written_blocks()
        coverage.check_tensors(self._links, shapes, (), "the exported folder")
        tensors = [NewTensor(n, self._dtype(n, written[n]), shape) for n, shape in shapes.items()]
        shards = lay_out(tensors, self._options.max_shard_bytes)
        several = ((INDEX, lambda: index_text(shards).encode()),) if len(shards) > 1 else ()
        sources = [self._saved.path / name for name in self._saved.files]
        return Plan(
            title=f"export of {self._saved.path.name}",
            sources=tuple(SourceFile.of(path) for path in sources),
            targets=tuple(TargetFile(shard.name, shard.size) for shard in shards),
            tasks=tuple(
                task for n, shard in enumerate(shards) for task in _shard_tasks(n, shard, written)
            ),
            tables=(*several, *self._options.tables),
            summary=summarize(self._links),
        )

    def _written_blocks(
        self,
    ) -> tuple[dict[str, list["_WrittenBlock"]], dict[str, tuple[int, ...]]]:
        """The positions of the blocks of each Hugging Face tensor, and the shape of each tensor."""
        written: dict[str, list[_WrittenBlock]] = defaultdict(list)
        shapes: dict[str, tuple[int, ...]] = {}
        missing = []
        read: dict[str, set[tuple[int, ...]]] = defaultdict(set)
        for link in self._links:
            found = self._saved.find(link)
            if found is None:
                missing.append(next(iter(saved_names(link.key, link)))[0])
                continue
            read[found.tensor.key].add(found.index)
            for row, rows, block in blocks.rows_of(link):
                shapes.setdefault(block.name, block.shape)
                columns = matrix_size(link.shape)[1]
                written[block.name].append(_WrittenBlock(block, row, rows, columns, found))
        if missing:
            names = list(dict.fromkeys(missing))
            raise MappingError(
                f"{self._saved.path} lacks {first_few(names)}, which this model needs; the "
                "checkpoint belongs to another configuration."
            )
        self._check_all_read(read)
        return written, shapes

    def _check_all_read(self, read: Mapping[str, set[tuple[int, ...]]]) -> None:
        same = {
            name
            for link in self._links
            for key in (link.key, *link.aliases)
            for name, _ in saved_names(key, link)
        }
        lost = [
            key
            for key, tensor in self._saved.tensors.items()
            if (key in read and len(read[key]) != _matrices(tensor, read[key]))
            or (key not in same and not _NOT_WEIGHTS.fullmatch(key))
        ]
        if lost:
            raise MappingError(
                f"{self._saved.path} holds {first_few(lost)}, for all or part of which this family "
                "has no counterpart; weights would be lost. Export it as the family that it was "
                "trained as."
            )

    def _dtype(self, name: str, written: Sequence["_WrittenBlock"]) -> str:
        types = sorted({block.found.tensor.dtype for block in written})
        wanted = self._options.dtype or self._options.dtypes.get(name)
        if wanted is None and len(types) > 1:
            raise CheckpointError(
                f"{self._saved.path}: the parts of {name} are saved as {' and '.join(types)}; "
                "choose one type with dtype=bf16, fp16 or fp32."
            )
        return wanted or types[0]


@dataclass(frozen=True, slots=True)
class _WrittenBlock:
    """A block that is written, and the rows of a Megatron matrix that correspond to it."""

    block: Block
    row: int
    rows: int
    columns: int
    found: FoundMatrix

    def moves(self, file: int, offset: int, dtype: str) -> Iterator[Move]:
        """The moves that fill the block, for a tensor at this offset of a file."""
        whole = blocks.view_of(self.block, self.columns, file, offset, dtype)
        for region in self.found.regions:
            begin = max(self.row, region.row)
            end = min(self.row + self.rows, region.row + region.view.rows)
            if begin >= end:
                continue
            source = region.view.rows_from(begin - region.row, end - begin)
            target = whole.part(begin - self.row, end - begin, region.column, region.view.columns)
            yield Move(source, self.found.tensor.dtype, target)


def _shard_tasks(
    number: int, shard: Shard, written: Mapping[str, Sequence[_WrittenBlock]]
) -> Iterator[Task]:
    yield Task(number, 0, len(shard.header), "U8", literal=shard.header)
    for tensor, offset in shard.tensors:
        yield from _tensor_tasks(number, tensor, offset, written[tensor.name])


def _tensor_tasks(
    number: int, tensor: NewTensor, offset: int, written: Iterable[_WrittenBlock]
) -> Iterator[Task]:
    """Tasks that fill a tensor; blocks that share rows of it are grouped together."""
    width = matrix_size(tensor.shape)[1]
    row_bytes = width * dtypes.item_size(tensor.dtype)
    moves_to: dict[tuple[int, int], list[Move]] = defaultdict(list)
    for it in written:
        rows = it.block.start, it.block.rows
        moves_to[rows].extend(it.moves(number, offset, tensor.dtype))
    for (start, height), moves in sorted(moves_to.items()):
        begin: int = offset + start * row_bytes
        yield from fill(number, begin, (height, width), tensor.dtype, moves)


def _matrices(tensor: SavedTensor, read: Iterable[tuple[int, ...]]) -> int:
    """Number of matrices in a tensor: the product of its leading axes."""
    leading = len(next(iter(read)))
    return prod(tensor.shape[:leading])
