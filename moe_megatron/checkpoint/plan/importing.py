"""Plans a Megatron checkpoint from a Hugging Face folder and links."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from moe_megatron.checkpoint.formats import dtypes
from moe_megatron.checkpoint.formats.hf_folder import HfFolder, TensorInfo
from moe_megatron.checkpoint.formats.torch_dist import BACKEND, Sizes
from moe_megatron.checkpoint.formats.torch_dist_writer import (
    Layout,
    TensorRecord,
    backend_text,
    common_state,
    extra_states,
    pickled,
)
from moe_megatron.checkpoint.formats.view import View, packed
from moe_megatron.checkpoint.plan import blocks, coverage
from moe_megatron.checkpoint.plan.redundant import check_redundant
from moe_megatron.checkpoint.plan.summary import summarize
from moe_megatron.checkpoint.plan.tasks import (
    Exponents,
    Move,
    Plan,
    Scale,
    SourceFile,
    TargetFile,
    Task,
    fill,
)
from moe_megatron.config.checkpoint_files import METADATA
from moe_megatron.errors import CheckpointError
from moe_megatron.families.links import (
    BLOCKS,
    SCALES,
    Block,
    Link,
    matrix_size,
    saved_names,
)
from moe_megatron.families.redundant import Redundant

SCALE = "_scale_inv"
_DEQUANTIZED = "BF16"


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Options of an import."""

    stacked: bool
    """Whether Megatron stacks the layers in one tensor."""
    redundant: tuple[Redundant, ...] = ()
    """Tensors that may be left out."""
    dtype: str | None = None
    """Type of all floating-point weights; None keeps the type of each."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """The arguments that Megatron compares when it loads."""
    scale_block: int = 128
    """Side of the square blocks that share a scale factor in 8-bit weights."""
    tables: tuple[tuple[str, Callable[[], bytes]], ...] = ()
    """Names and contents of additional small files."""


def check_source(
    folder: HfFolder, links: Sequence[Link], options: ImportOptions, *, contents: bool = True
) -> None:
    """Prove that the links cover the whole folder.

    Args:
        folder: The source.
        links: All links of the model.
        options: Options of the import.
        contents: Also read the tensors that are left out, and prove that they are redundant.

    Raises:
        MappingError: A tensor is missing, unknown or of another shape; the message names it.
    """
    coverage.check_links(links, stacked=options.stacked)
    shapes = {
        name: tensor.shape
        for name, tensor in folder.tensors.items()
        if scaled(name, folder) is None
    }
    patterns = [kind.pattern for kind in options.redundant]
    coverage.check_tensors(links, shapes, patterns, str(folder.path))
    if contents:
        used = {block.name for link in links for block in link.blocks}
        check_redundant(folder, used, options.redundant)


def scaled(name: str, folder: HfFolder) -> TensorInfo | None:
    """The quantised tensor whose scales this tensor holds; None if it holds none."""
    if name.endswith(SCALES):
        packed_tensor = folder.tensors.get(name.removesuffix(SCALES) + BLOCKS)
        if packed_tensor is not None and is_packed(packed_tensor):
            return packed_tensor
    found = folder.tensors.get(name.removesuffix(SCALE)) if name.endswith(SCALE) else None
    return found if found is not None and found.dtype in dtypes.EIGHT_BIT_FLOATS else None


def is_packed(tensor: TensorInfo) -> bool:
    """Whether a tensor holds 4-bit numbers (MXFP4)."""
    return tensor.dtype == "U8" and tensor.name.endswith(BLOCKS)


def plan_import(folder: HfFolder, links: Sequence[Link], options: ImportOptions) -> Plan:
    """Plan a Megatron checkpoint.

    Args:
        folder: The source.
        links: The links to import; `check_source` must have checked all links of the model.
        options: Options of the import.

    Raises:
        CheckpointError: Tensors that Megatron keeps in one tensor have different types.
    """
    coverage.check_links(links, stacked=options.stacked)
    return _Importer(folder, links, options).plan()


@dataclass(frozen=True, slots=True)
class _ReadBlock:
    """A block that is read: the rows of a matrix that come from it, and its view."""

    row: int
    """First row in the matrix."""
    view: View
    tensor: TensorInfo
    weight: float | None


class _Importer:
    def __init__(self, folder: HfFolder, links: Sequence[Link], options: ImportOptions) -> None:
        self._folder, self._links, self._options = folder, links, options
        files = sorted({tensor.file for tensor in folder.tensors.values()})
        self._files = {name: number for number, name in enumerate(files)}
        self._types: dict[str, tuple[str, str]] = {}
        self._shapes = self._whole_shapes()

    def plan(self) -> Plan:
        total = sum(prod(link.shape) * dtypes.item_size(self._dtype(link)) for link in self._links)
        layout = Layout(total)
        tasks = [task for link in self._links for task in self._matrix(link, layout)]
        tasks += self._objects(layout)
        sources = [self._folder.path / name for name in self._files]
        return Plan(
            title=f"import of {self._folder.path.name}",
            sources=tuple(SourceFile.of(path) for path in sources),
            targets=tuple(TargetFile(name, size) for name, size in layout.files),
            tasks=tuple(tasks),
            tables=(
                *self._options.tables,
                (BACKEND, backend_text),
                (METADATA, layout.metadata),
            ),
            summary=summarize(self._links, self._folder.tensors),
        )

    def _name(self, key: str, link: Link) -> tuple[str, Sizes]:
        candidates = list(saved_names(key, link))
        return candidates[0 if self._options.stacked else -1]

    def _whole_shapes(self) -> dict[str, Sizes]:
        """Sizes of the leading axes (layers, experts) of each Megatron tensor."""
        found: dict[str, Sizes] = {}
        for link in self._links:
            for key in (link.key, *link.aliases):
                name, index = self._name(key, link)
                before = found.get(name, index)
                found[name] = tuple(max(a, b) for a, b in zip(before, index, strict=True))
        return {name: tuple(last + 1 for last in index) for name, index in found.items()}

    def _dtype(self, link: Link) -> str:
        """Type in which a link's matrix is written."""
        types = {self._target_dtype(self._folder.tensors[b.name], link) for b in link.blocks}
        if not types:
            assert link.dtype is not None, "a random matrix needs a type"
            types, origin = {link.dtype}, link.key
        else:
            origin = link.blocks[0].name
        name, _ = self._name(link.key, link)
        dtype, first = self._types.setdefault(name, (min(types), origin))
        if types != {dtype}:
            other = next(name for name in types if name != dtype)
            tensors = (self._folder.tensors[block.name] for block in link.blocks)
            typed = {self._target_dtype(tensor, link): tensor.name for tensor in tensors}
            raise CheckpointError(
                f"{self._folder.path}: {typed.get(other, origin)} is {other} and "
                f"{typed.get(dtype, first)} is {dtype}, but Megatron "
                f"keeps both in {name}; choose one type with dtype=bf16, fp16 or fp32."
            )
        return dtype

    def _target_dtype(self, tensor: TensorInfo, link: Link) -> str:
        if link.dtype is not None:
            return link.dtype
        if tensor.dtype in dtypes.EIGHT_BIT_FLOATS or is_packed(tensor):
            return self._options.dtype or _DEQUANTIZED
        if tensor.dtype not in dtypes.FLOATS:
            raise CheckpointError(
                f"{self._folder.path}: {tensor.name} has the type {tensor.dtype}, which Megatron "
                "cannot train; convert the weights to bf16 first."
            )
        return self._options.dtype or tensor.dtype

    def _matrix(self, link: Link, layout: Layout) -> Iterator[Task]:
        dtype = self._dtype(link)
        names = [self._name(key, link) for key in (link.key, *link.aliases)]
        index = names[0][1]
        leading = self._shapes[names[0][0]]
        rows, columns = matrix_size(link.shape)
        read = list(self._read_blocks(link, columns))
        size = (link.shape[0] // link.chunks, *link.shape[1:])
        for chunk in range(link.chunks):
            record = layout.add_tensor(
                keys=tuple(name for name, _ in names),
                dtype=dtype,
                shape=(*leading, *link.shape),
                offsets=(*index, chunk * size[0], *(0 for _ in size[1:])),
                sizes=(*(1 for _ in index), *size),
            )
            height = rows // link.chunks
            target = _target(record, height, columns)
            moves = list(self._inside(read, chunk * height, target))
            if link.noise is not None:
                noise = link.noise.rows_from(chunk * height, height)
                moves.append(Move(noise, "F32", target, weight=1.0))
            data = fill(record.file, record.data, (height, columns), dtype, moves)
            yield from framed(record, data)

    def _read_blocks(self, link: Link, columns: int) -> Iterator[_ReadBlock]:
        """The blocks of the link or, for a sum, of its terms."""
        terms: list[tuple[tuple[Block, ...], float | None]]
        terms = [(term.blocks, term.weight) for term in link.terms]
        for own, weight in terms or [(link.blocks, None if link.noise is None else 1.0)]:
            for row, _, block in blocks.rows_of(replace(link, blocks=own)):
                tensor = self._folder.tensors[block.name]
                file = self._files[tensor.file]
                view = blocks.view_of(block, columns, file, tensor.offset, tensor.dtype)
                yield _ReadBlock(row, view, tensor, weight)

    def _inside(self, read: Sequence[_ReadBlock], first: int, target: View) -> Iterator[Move]:
        """The moves into a chunk that begins at row `first` of the matrix."""
        for block in read:
            begin = max(block.row, first)
            end = min(block.row + block.view.rows, first + target.rows)
            if begin < end:
                source = block.view.rows_from(begin - block.row, end - begin)
                into = target.rows_from(begin - first, end - begin)
                scale = self._scale(source, block.tensor)
                yield Move(source, block.tensor.dtype, into, scale, block.weight)

    def _objects(self, layout: Layout) -> Iterator[Task]:
        matrices = []
        for link in self._links:
            for key in (link.key, *link.aliases):
                name, index = self._name(key, link)
                matrices.append((name, index, self._shapes[name]))
        for names, content in (
            (extra_states(matrices), pickled([None])),
            common_state(self._options.arguments),
        ):
            record = layout.add_object(names, content)
            yield Task(record.file, record.offset, len(content), "U8", literal=content)

    def _scale(self, view: View, tensor: TensorInfo) -> Scale | Exponents | None:
        if is_packed(tensor):
            return self._exponents(view, tensor)
        if tensor.dtype not in dtypes.EIGHT_BIT_FLOATS:
            return None
        factors = self._folder.tensors.get(tensor.name + SCALE)
        block = self._options.scale_block
        height, width = matrix_size(tensor.shape)
        wanted = (-(-height // block), -(-width // block))
        if factors is None or factors.dtype != "F32" or factors.shape != wanted:
            raise CheckpointError(
                f"{self._folder.path}: {tensor.name} has 8-bit weights and needs scale factors "
                f"{tensor.name}{SCALE} of shape {list(wanted)} in F32; there are "
                f"{'none' if factors is None else f'{list(factors.shape)} in {factors.dtype}'}."
            )
        at = packed(self._files[factors.file], factors.offset, *wanted, item=4)
        return Scale(at, block, *divmod(view.offset - tensor.offset, width))

    def _exponents(self, view: View, tensor: TensorInfo) -> Exponents:
        exponents = exponents_of(tensor, self._folder)
        file = self._files[exponents.file]
        return Exponents(blocks.exponents_of(view, tensor, exponents, file))


def exponents_of(tensor: TensorInfo, folder: HfFolder) -> TensorInfo:
    """The tensor with the exponents of 4-bit numbers.

    Raises:
        CheckpointError: It is missing, or does not fit.
    """
    name = tensor.name.removesuffix(BLOCKS) + SCALES
    found = folder.tensors.get(name)
    wanted = tensor.shape[:-1]
    if found is None or found.dtype != "U8" or found.shape != wanted:
        raise CheckpointError(
            f"{folder.path}: {tensor.name} has 4-bit weights and needs exponents {name} of shape "
            f"{list(wanted)} in U8; there are "
            f"{'none' if found is None else f'{list(found.shape)} in {found.dtype}'}."
        )
    return found


def _target(record: TensorRecord, rows: int, columns: int) -> View:
    return packed(record.file, record.data, rows, columns, dtypes.item_size(record.dtype))


def framed(record: TensorRecord, tasks: Iterable[Task]) -> Iterator[Task]:
    """The tasks of a record's data, between tasks that write the bytes before and after it."""
    head, tail = record.around
    yield Task(record.file, record.offset, len(head), "U8", literal=head)
    yield from tasks
    end = record.offset + record.length - len(tail)
    yield Task(record.file, end, len(tail), "U8", literal=tail)
