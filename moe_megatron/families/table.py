"""Rows of a mapping table and their expansion to links.

A row states once, for all layers and experts, which Hugging Face tensors make up a Megatron key. It
holds names and axes; sizes come from a `Geometry`. This module does not know any family.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import prod

from moe_megatron.families.geometry import Geometry
from moe_megatron.families.links import Block, Link, Transform

Axes = tuple[str | int, ...]
_KEPT = "hugging_face."


class Scope(StrEnum):
    """What a row is repeated for."""

    MODEL = "model"
    """Nothing: it occurs once, and its key is complete."""
    LAYERS = "layers"
    """Every layer; its key continues `decoder.layers.{layer}.`."""
    MOE = "moe"
    """Every MoE layer."""
    DENSE = "dense"
    """Every dense layer."""
    MTP = "mtp"
    """Every multi-token prediction layer; its key continues `mtp.layers.{n}.`."""


class Form(StrEnum):
    """How Hugging Face tensors make up one Megatron matrix [rows, ...]."""

    ROWS = "rows"
    """One tensor after the other, each with an equal part of the rows."""
    QKV = "qkv"
    """Queries, keys and values interleaved by group: a group's queries, its key, its value."""
    LINE = "line"
    """One tensor [1, rows] that holds a vector."""
    STACK = "stack"
    """One tensor [experts, rows, ...] that holds the matrices of all experts."""
    STACK_T = "stack_t"
    """One tensor [experts, columns, rows]: the matrices of all experts, transposed."""
    STACK_T_PAIRS = "stack_t_pairs"
    """One tensor [experts, columns, rows]: transposed, gate and up rows alternating."""
    STACK_PAIRS = "stack_pairs"
    """One tensor [experts, rows]: biases of all experts, gate and up alternating."""
    STACK_FP4 = "stack_fp4"
    """One tensor [experts, rows, columns / 32, 16] of 4-bit numbers (MXFP4)."""
    STACK_FP4_PAIRS = "stack_fp4_pairs"
    """As STACK_FP4, gate and up rows alternating."""


@dataclass(frozen=True, slots=True)
class Source:
    """The Hugging Face side of a row."""

    names: tuple[str, ...]
    """Names with `{layer}` and `{expert}`."""
    form: Form = Form.ROWS


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One Megatron key and the Hugging Face tensors that make it up, in both layouts."""

    key: str
    """Key in the local layer spec, without the prefix of its scope."""
    shape: Axes
    """Sizes of the matrix, as names of `Geometry` or numbers."""
    source: Source
    """The tensors in the classic layout of published checkpoints."""
    fused: Source | None = None
    """The tensors in the layout of transformers 5; None: the same."""
    packed: Source | None = None
    """The tensors where weights are published in 4 bits (MXFP4); None: the same."""
    scope: Scope = Scope.LAYERS
    aliases: tuple[str, ...] = ()
    """Keys in the Transformer Engine spec, without the same prefix."""
    per_expert: bool = False
    """Whether it is repeated for every expert."""
    gated: bool = False
    """Whether it is gate and up projection in one matrix, which Megatron saves in two parts."""
    when: str = ""
    """Name of a property of `Geometry`; the row is left out if that is 0 or false."""
    kind: str = ""
    """The kind of layers that it is repeated for (`Geometry.layer_kinds`); empty: all of them."""
    kept: bool = False
    """Whether Megatron has no name for it: its key then continues `hugging_face.layers.{layer}.`,
    of a tensor for each layer, which Megatron does not look at."""
    dtype: str | None = None


@dataclass(frozen=True, slots=True)
class _Place:
    """One place where a row is repeated: prefix of the key, and the layer on both sides."""

    prefix: str
    layer: int | None
    hf_layer: int | None


@dataclass(frozen=True, slots=True)
class _Matrix:
    """One repetition of a row."""

    geometry: Geometry
    names: tuple[str, ...]
    shape: tuple[int, ...]
    expert: int = field(default=0)


def expand(
    rows: Iterable[Row], geometry: Geometry, *, fused: bool, packed: bool = False
) -> list[Link]:
    """All links of a model.

    Args:
        rows: The family's table.
        geometry: Sizes of the model.
        fused: Whether the Hugging Face side has the layout of transformers 5.
        packed: Whether it has the 4-bit weights of published checkpoints.
    """
    return [
        link
        for row in rows
        if not row.when or getattr(geometry, row.when)
        for place in _places(row, geometry)
        for link in _links(row, _source(row, fused=fused, packed=packed), place, geometry)
    ]


def _source(row: Row, *, fused: bool, packed: bool) -> Source:
    if packed and row.packed is not None:
        return row.packed
    return row.fused if fused and row.fused is not None else row.source


def _places(row: Row, geometry: Geometry) -> Iterator[_Place]:
    for place in _all_places(row.scope, geometry):
        if row.kind and (place.layer is None or geometry.layer_kinds[place.layer] != row.kind):
            continue
        yield _kept_place(place) if row.kept else place


def _kept_place(place: _Place) -> _Place:
    return _Place(f"{_KEPT}layers.{place.hf_layer}.", None, place.hf_layer)


def _all_places(scope: Scope, geometry: Geometry) -> Iterator[_Place]:
    if scope is Scope.MODEL:
        yield _Place("", None, None)
        return
    if scope is not Scope.MTP:
        for layer, is_moe in enumerate(geometry.moe_layers):
            if scope is Scope.LAYERS or is_moe == (scope is Scope.MOE):
                yield _Place("decoder.layers.{layer}.", layer, layer)
    # A multi-token prediction layer contains a transformer layer of the same kind as the last one.
    last = Scope.MOE if geometry.moe_layers[-1] else Scope.DENSE
    inner = "" if scope is Scope.MTP else "transformer_layer."
    if scope in {Scope.MTP, Scope.LAYERS, last}:
        for number in range(geometry.mtp_layers):
            yield _Place(f"mtp.layers.{number}.{inner}", None, geometry.layers + number)


def _links(row: Row, source: Source, place: _Place, geometry: Geometry) -> Iterator[Link]:
    shape = tuple(geometry.size(axis) for axis in row.shape)
    for expert in range(geometry.experts) if row.per_expert else (None,):
        names = tuple(name.format(layer=place.hf_layer, expert=expert) for name in source.names)
        matrix = _Matrix(geometry, names, shape, expert or 0)
        yield Link(
            key=place.prefix + row.key,
            aliases=tuple(place.prefix + alias for alias in row.aliases),
            layer=place.layer,
            expert=expert,
            shape=shape,
            chunks=2 if row.gated else 1,
            dtype=row.dtype,
            blocks=tuple(_BLOCKS[source.form](matrix)),
        )


def _rows(matrix: _Matrix) -> Iterator[Block]:
    rows = matrix.shape[0] // len(matrix.names)
    for name in matrix.names:
        yield Block(name=name, shape=(rows, *matrix.shape[1:]), rows=rows)


def _line(matrix: _Matrix) -> Iterator[Block]:
    yield Block(name=matrix.names[0], shape=(1, *matrix.shape), rows=1)


def _qkv(matrix: _Matrix) -> Iterator[Block]:
    geometry, width = matrix.geometry, matrix.geometry.head_dim
    queries = geometry.heads // geometry.query_groups * width
    kinds = ((queries, geometry.q_rows), (width, geometry.kv_rows), (width, geometry.kv_rows))
    for group in range(geometry.query_groups):
        for name, (rows, total) in zip(matrix.names, kinds, strict=True):
            shape = (total, *matrix.shape[1:])
            yield Block(name=name, shape=shape, start=group * rows, rows=rows)


def _stack(matrix: _Matrix) -> Iterator[Block]:
    rows = prod(matrix.shape[:-1])
    whole = (matrix.geometry.experts, *matrix.shape)
    yield Block(name=matrix.names[0], shape=whole, start=matrix.expert * rows, rows=rows)


def _stack_transposed(matrix: _Matrix, *transforms: Transform) -> Iterator[Block]:
    rows, columns = matrix.shape
    for transform in transforms or (Transform.TRANSPOSE,):
        yield Block(
            name=matrix.names[0],
            shape=(matrix.geometry.experts, columns, rows),
            start=matrix.expert * columns,
            rows=columns,
            transform=transform,
        )


def _stack_transposed_pairs(matrix: _Matrix) -> Iterator[Block]:
    return _stack_transposed(matrix, Transform.TRANSPOSE_EVEN, Transform.TRANSPOSE_ODD)


def _stack_pairs(matrix: _Matrix) -> Iterator[Block]:
    whole = (matrix.geometry.experts, *matrix.shape)
    for transform in (Transform.EVEN, Transform.ODD):
        yield Block(
            name=matrix.names[0], shape=whole, start=matrix.expert, rows=1, transform=transform
        )


def _stack_fp4(matrix: _Matrix, *transforms: Transform) -> Iterator[Block]:
    rows, columns = matrix.shape
    runs = rows * columns // _RUN
    for transform in transforms or (Transform.FP4,):
        yield Block(
            name=matrix.names[0],
            shape=(matrix.geometry.experts, rows, columns // _RUN, _RUN // 2),
            start=matrix.expert * runs,
            rows=runs,
            transform=transform,
        )


def _stack_fp4_pairs(matrix: _Matrix) -> Iterator[Block]:
    return _stack_fp4(matrix, Transform.FP4_EVEN, Transform.FP4_ODD)


_RUN = 32
"""Numbers of a row that share an exponent (MXFP4)."""
_BLOCKS = {
    Form.ROWS: _rows,
    Form.QKV: _qkv,
    Form.LINE: _line,
    Form.STACK: _stack,
    Form.STACK_T: _stack_transposed,
    Form.STACK_T_PAIRS: _stack_transposed_pairs,
    Form.STACK_PAIRS: _stack_pairs,
    Form.STACK_FP4: _stack_fp4,
    Form.STACK_FP4_PAIRS: _stack_fp4_pairs,
}


def one_to_one(key: str, name: str, *shape: str | int, **more: object) -> Row:
    """A row whose Megatron matrix is one Hugging Face tensor."""
    return Row(key=key, shape=shape, source=Source((name,)), **more)  # type: ignore[arg-type]


_SCALE = "_scale_inv"


def carried(
    names: Collection[str] | None, patterns: Sequence[str]
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Names and shapes of the tensors that match one of the patterns, sorted.

    Args:
        names: Names of a model's tensors, on either side, with a shape for each if it is a mapping.
        patterns: Patterns of whole Hugging Face names.
    """
    if not patterns or not isinstance(names, Mapping):
        return ()
    wanted = re.compile("|".join(f"(?:{pattern})" for pattern in patterns))
    found = {name.removeprefix(_KEPT): value for name, value in names.items()}
    return tuple(
        (name, tuple(getattr(value, "shape", value)))
        for name, value in sorted(found.items())
        if wanted.fullmatch(name) and name.removesuffix(_SCALE) not in found.keys() - {name}
    )


def kept_links(names: Sequence[tuple[str, tuple[int, ...]]]) -> list[Link]:
    """Links of tensors that Megatron has no place for.

    The Megatron checkpoint holds them under `hugging_face.<name>`, which Megatron ignores and an
    export reads.
    """
    return [
        Link(
            key=f"{_KEPT}{name}",
            shape=shape,
            blocks=(
                Block(name=name, shape=shape, rows=prod(shape[:-1]) if shape[1:] else shape[0]),
            ),
        )
        for name, shape in names
    ]
