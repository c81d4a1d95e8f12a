"""Proves that a list of links covers everything exactly once.

Every tensor of the Hugging Face side must be read and every matrix of the Megatron side filled, and
no row of either may be used twice. A converter without this proof loses tensors silently.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from math import prod

from moe_megatron.config.checks import first_few
from moe_megatron.errors import MappingError
from moe_megatron.families.links import PACKED, Block, Link, Transform, matrix_size, saved_names

_HALVES = {
    Transform.EVEN: (0,),
    Transform.FP4_EVEN: (0,),
    Transform.FP4_ODD: (1,),
    Transform.TRANSPOSE_EVEN: (0,),
    Transform.ODD: (1,),
    Transform.TRANSPOSE_ODD: (1,),
}
"""Which halves of the columns (or elements) a transform reads: 0 even, 1 odd. By default both."""


def elements(block: Block) -> int:
    """Number of elements that a block contributes to its link."""
    columns = matrix_size(block.shape)[1] if block.columns is None else block.columns[1]
    numbers = 2 if block.transform in PACKED else 1
    return numbers * block.rows * columns * len(_HALVES.get(block.transform, (0, 1))) // 2


def check_links(links: Sequence[Link], *, stacked: bool) -> None:
    """Prove that each matrix of the Megatron side is filled exactly once.

    Args:
        links: All links of a model.
        stacked: Whether layers share a key, so that each must have the same matrices.

    Raises:
        MappingError: The mapping table contradicts itself; the message names the keys.
    """
    seen: dict[str, set[tuple[int, ...]]] = defaultdict(set)
    for link in links:
        given = sum(map(elements, link.blocks))
        if link.noise is not None and not link.blocks:
            given = link.noise.elements
        if given != prod(link.shape) or link.shape[0] % link.chunks:
            raise MappingError(
                f"the mapping of {link.key} (layer {link.layer}, expert {link.expert}) gives "
                f"{given} numbers to a matrix of {list(link.shape)} in "
                f"{link.chunks} chunk(s); the table of this family is wrong."
            )
        name, index = _name(link, stacked)
        if index in seen[name]:
            raise MappingError(f"the mapping fills {name} at {index} twice; its table is wrong.")
        seen[name].add(index)
    holes = sorted(name for name, indices in seen.items() if not _is_box(indices))
    if holes:
        raise MappingError(
            f"the mapping leaves layers or experts of {first_few(holes)} empty; its table is wrong."
        )


def check_tensors(
    links: Iterable[Link],
    shapes: Mapping[str, tuple[int, ...]],
    ignored: Collection[str],
    where: str,
) -> None:
    """Prove that each tensor of the Hugging Face side is used exactly once.

    Args:
        links: All links of a model.
        shapes: Shape of each existing tensor.
        ignored: Regular expressions for the names of tensors that are not weights.
        where: The folder, for error messages.

    Raises:
        MappingError: A tensor is missing, unknown, of another shape or used twice; the message
            names it.
    """
    used: dict[str, list[Block]] = defaultdict(list)
    for link in links:
        for block in link.blocks:
            used[block.name].append(block)
    if missing := [name for name in used if name not in shapes]:
        close = get_close_matches(missing[0], shapes, n=1)
        hint = f" (there is {close[0]})" if close else ""
        raise MappingError(
            f"{where} lacks {first_few(missing)}{hint}; the folder is incomplete, or config.json "
            "is of another model."
        )
    patterns = [re.compile(pattern) for pattern in ignored]
    unknown = [n for n in shapes if n not in used and not any(p.fullmatch(n) for p in patterns)]
    if unknown:
        raise MappingError(
            f"{where} holds {first_few(unknown)}, for which this family has no counterpart; these "
            "weights would be lost. Check model_type in config.json."
        )
    for name, blocks in used.items():
        if shapes[name] != blocks[0].shape:
            raise MappingError(
                f"{where}: {name} has the shape {list(shapes[name])}, but config.json requires "
                f"{list(blocks[0].shape)}; one of them is of another model."
            )
        _check_rows(name, blocks)


def _check_rows(name: str, blocks: Sequence[Block]) -> None:
    rows = matrix_size(blocks[0].shape)[0]
    for half in (0, 1):
        at = 0
        for block in sorted(blocks, key=lambda b: b.start):
            if half in _HALVES.get(block.transform, (0, 1)):
                if block.start != at:
                    rows = -1
                at = block.start + block.rows
        if at != rows:
            raise MappingError(
                f"the mapping does not use each row of {name} exactly once; the table of this "
                "family is wrong."
            )


def _name(link: Link, stacked: bool) -> tuple[str, tuple[int, ...]]:
    candidates = list(saved_names(link.key, link))
    return candidates[0 if stacked else -1]


def _is_box(indices: set[tuple[int, ...]]) -> bool:
    sizes: list[int] = [max(axis) + 1 for axis in zip(*indices, strict=True)]
    return len(indices) == prod(sizes)
