"""Plans a Megatron checkpoint with more or fewer experts from one of a run that goes on.

What has the experts as an axis is made anew, expert by expert: their weights, the rows of the
router, what it remembers of them, and what the optimizer keeps of all these. Everything else is
copied byte by byte, random states and the place in the data included.

Moments follow the gradients. Of m copies each gets 1/m of the gradient that their origin would get,
so its first moment is 1/m and its second 1/m^2 of the origin's; a merged expert gets the gradients
of all its members, so its moments are the sums of theirs.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

from moe_megatron.checkpoint.edit.pool_change import Layers, Made
from moe_megatron.checkpoint.formats import dtypes
from moe_megatron.checkpoint.formats.torch_dist import BACKEND, SavedTensor, Sizes, TorchDist
from moe_megatron.checkpoint.formats.torch_dist_writer import Layout, backend_text
from moe_megatron.checkpoint.formats.view import packed
from moe_megatron.checkpoint.plan.importing import framed
from moe_megatron.checkpoint.plan.tasks import Move, Plan, SourceFile, TargetFile, Task, fill
from moe_megatron.config.checkpoint_files import METADATA
from moe_megatron.errors import CheckpointError
from moe_megatron.families.links import Noise, matrix_size

_EXPERTS = "mlp.experts.experts."
_KEY = re.compile(
    r"(?:optimizer\.state\.(?P<kind>\w+)\.)?(?P<weight>"
    r"(?P<place>decoder\.layers\.(?:(?P<layer>\d+)\.)?|mtp\.layers\.(?P<mtp>\d+)\.\w+\.)"
    r"(?P<part>mlp\.experts\.experts\.|mlp\.router\.(?P<name>.+))?.*)"
)
_OPTIMIZER = re.compile(r"optimizer\.state\.(param|exp_avg|exp_avg_sq)\..+")
_EXTRA = re.compile(r"(.*mlp\.experts\.experts\..*_extra_state/shard_)([\d.]+)_([\d.]+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Resizing:
    """What a plan makes."""

    layers: Layers
    """The experts of each MoE layer."""
    rows: Mapping[str, int]
    """Tensors of a router with a row of each expert, and how many further rows follow in them."""
    experts: int
    """Their number before."""
    decoder_layers: int
    """Layers of the decoder; those for multi-token prediction are numbered on."""
    noise: float = 0.0
    """Standard deviation of the noise of copies."""
    seed: int = 0
    """Its seed."""
    tables: tuple[tuple[str, Callable[[], bytes]], ...] = ()
    """Names and contents of small files."""

    @property
    def new_experts(self) -> int:
        """The number of experts afterwards, which all layers share."""
        return len(next(iter(self.layers.values())))


def bytes_of_experts(saved: TorchDist) -> int:
    """What all experts of a checkpoint take, with the optimizer's states of them."""
    return sum(
        prod(it.shape) * dtypes.item_size(it.dtype)
        for it in saved.tensors.values()
        if _EXPERTS in it.key
    )


def plan_resizing(saved: TorchDist, wanted: Resizing) -> Plan:
    """Plan a checkpoint with other experts.

    Args:
        saved: The source.
        wanted: What to make of it.

    Raises:
        CheckpointError: The checkpoint is damaged, or its optimizer was saved for its layout alone.
    """
    return _Resizer(saved, wanted).plan()


class _Resizer:
    def __init__(self, saved: TorchDist, wanted: Resizing) -> None:
        self._saved, self._wanted = saved, wanted
        _check_optimizer(saved)

    def plan(self) -> Plan:
        total = sum(
            prod(it.shape) * dtypes.item_size(it.dtype) for it in self._saved.tensors.values()
        )
        layout = Layout(total)
        tasks: list[Task] = []
        for tensor in self._saved.tensors.values():
            made = self._made(tensor)
            tasks += self._copied(tensor, layout) if made is None else self._new(*made, layout)
        tasks += self._objects(layout)
        sources = [self._saved.path / name for name in self._saved.files]
        before, after = self._wanted.experts, self._wanted.new_experts
        return Plan(
            title=f"{self._saved.path.name} with {after} experts in place of {before}",
            sources=tuple(SourceFile.of(path) for path in sources),
            targets=tuple(TargetFile(name, size) for name, size in layout.files),
            tasks=tuple(tasks),
            tables=(*self._wanted.tables, (BACKEND, backend_text), (METADATA, layout.metadata)),
        )

    def _made(self, tensor: SavedTensor) -> "tuple[SavedTensor, re.Match[str], int] | None":
        """A tensor that has the experts as an axis, its key, and which axis; None for others."""
        match = _KEY.fullmatch(tensor.key)
        if match is None or match["part"] is None:
            return None
        stacked = match["layer"] is None and match["mtp"] is None
        axis = int(stacked)
        further = self._further(match)
        if further is None:
            return None
        rows = self._wanted.experts + further
        if len(tensor.shape) <= axis or tensor.shape[axis] != rows:
            raise CheckpointError(
                f"{self._saved.path}: {tensor.key} has the shape {list(tensor.shape)}, whose axis "
                f"{axis} should be {rows} long, of {self._wanted.experts} experts; the "
                "configuration beside it is another model's."
            )
        return tensor, match, axis

    def _further(self, match: "re.Match[str]") -> int | None:
        """Rows after those of experts; None: it has none of experts."""
        return 0 if match["part"] == _EXPERTS else self._wanted.rows.get(match["name"])

    def _new(
        self, tensor: SavedTensor, match: "re.Match[str]", axis: int, layout: Layout
    ) -> Iterator[Task]:
        further = self._further(match) or 0
        length = self._wanted.new_experts + further
        shape = (*tensor.shape[:axis], length, *tensor.shape[axis + 1 :])
        rest = [Made(members=((self._wanted.experts + row, 1.0),)) for row in range(further)]
        for layer in range(tensor.shape[0]) if axis else (None,):
            experts = self._wanted.layers[self._number(match, layer)]
            for number, made in enumerate((*experts, *rest)):
                yield from self._expert(tensor, match, shape, layer, number, made, layout)

    def _number(self, match: "re.Match[str]", layer: int | None) -> int:
        """Number of a layer in the whole model, from 1."""
        if match["mtp"] is not None:
            return self._wanted.decoder_layers + int(match["mtp"]) + 1
        return int(match["layer"] if layer is None else layer) + 1

    def _expert(
        self,
        tensor: SavedTensor,
        match: "re.Match[str]",
        shape: Sizes,
        layer: int | None,
        number: int,
        made: Made,
        layout: Layout,
    ) -> Iterator[Task]:
        """The part of a tensor that is one expert's."""
        leading = () if layer is None else (layer,)
        matrix = tensor.shape[len(leading) + 1 :]
        rows, columns = matrix_size(matrix)
        corner = (*leading, number, *(0 for _ in matrix))
        record = layout.add_tensor(
            (tensor.key,), tensor.dtype, shape, corner, (*(1 for _ in leading), 1, *matrix)
        )
        item = dtypes.item_size(tensor.dtype)
        whole = packed(record.file, record.data, rows, columns, item)
        of_router = match["part"] != _EXPERTS
        noise = None if of_router or match["kind"] in _MOMENTS else self._noise(match, layer, made)
        members = made.members[:1] if of_router else made.members
        weights = [_weight(match["kind"], share, made, of_router=of_router) for _, share in members]
        plain = weights == [1.0] and (noise is None or not rows * columns or len(matrix) < 2)
        moves = []
        for (expert, _), weight in zip(members, weights, strict=True):
            for region in self._saved.matrix_at(tensor, (*leading, expert)).regions:
                view = region.view
                at = whole.part(region.row, view.rows, region.column, view.columns)
                moves.append(Move(view, tensor.dtype, at, weight=None if plain else weight))
        if noise is not None and not plain:
            drawn = Noise(
                seed=self._wanted.seed,
                stream=noise,
                std=self._wanted.noise,
                rows=rows,
                columns=columns,
            )
            moves.append(Move(drawn, "F32", whole, weight=made.sign))
        size = (rows, columns)
        yield from framed(record, fill(record.file, record.data, size, tensor.dtype, moves))

    def _noise(self, match: "re.Match[str]", layer: int | None, made: Made) -> int | None:
        """The random stream of an expert's noise, the same for its weights in all precisions."""
        if not self._wanted.noise or not made.sign:
            return None
        name = f"{match['weight']}/{layer}/{made.members[0][0]}/{made.pair}"
        return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())

    def _copied(self, tensor: SavedTensor, layout: Layout) -> Iterator[Task]:
        item = dtypes.item_size(tensor.dtype)
        for chunk in tensor.chunks:
            record = layout.add_tensor(
                (tensor.key,), tensor.dtype, tensor.shape, chunk.offsets, chunk.sizes
            )
            size = matrix_size(chunk.sizes)
            source = packed(chunk.record.file, self._saved.data_offset(tensor, chunk), *size, item)
            move = Move(source, tensor.dtype, packed(record.file, record.data, *size, item))
            tasks = fill(record.file, record.data, size, tensor.dtype, [move])
            yield from framed(record, tasks if prod(size) else ())

    def _objects(self, layout: Layout) -> Iterator[Task]:
        for key in self._saved.objects:
            content = self._saved.content(key)
            names = self._extra_names(key)
            if not names:
                continue
            record = layout.add_object(names, content)
            yield Task(record.file, record.offset, len(content), "U8", literal=content)

    def _extra_names(self, key: str) -> list[str]:
        """The keys under which an object is saved; those of experts' extra states are many."""
        match = _EXTRA.fullmatch(key)
        if match is None:
            return [key]
        index, sizes = ([int(it) for it in match[n].split(".")] for n in (2, 3))
        total = ".".join(map(str, (*sizes[:-1], self._wanted.new_experts)))
        layer = index[0] if len(index) > 1 else None
        where = _KEY.fullmatch(key)
        assert where is not None, "an extra state is a layer's"
        return [
            f"{match[1]}{'.'.join(map(str, (*index[:-1], number)))}_{total}"
            for number, made in enumerate(self._wanted.layers[self._number(where, layer)])
            if made.members[0][0] == index[-1]
        ]


_MOMENTS = ("exp_avg", "exp_avg_sq")


def _weight(kind: str | None, share: float, made: Made, *, of_router: bool) -> float:
    """What a member contributes to a tensor of the new expert."""
    if kind == "exp_avg":
        return 1.0 / made.copies
    if kind == "exp_avg_sq":
        return 1.0 / made.copies**2
    return 1.0 if of_router else share


def _check_optimizer(saved: TorchDist) -> None:
    names = [*saved.tensors, *saved.objects]
    other = [
        name
        for name in names
        if name.partition(".")[0].startswith(("optimizer", "chained"))
        and not _OPTIMIZER.fullmatch(name)
    ]
    if other:
        raise CheckpointError(
            f"{saved.path}: its optimizer was saved for its parallel sizes alone ({other[0]}), so "
            "that what it keeps of an expert cannot be found. Save one with "
            "checkpoint.fully_reshardable: true, which is the default."
        )
