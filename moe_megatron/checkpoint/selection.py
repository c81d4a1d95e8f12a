"""Takes some layers and experts of a model, and numbers them anew.

What is taken may repeat: an expert that stands twice in a selection becomes two experts.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from moe_megatron.checkpoint.links import Block, Link, Transform
from moe_megatron.checkpoint.mappings import Family, Geometry
from moe_megatron.errors import CheckpointError, MappingError

_ROUTER = ".router."
_MTP = "mtp."
_PER_LAYER = ("layer_types", "mlp_layer_types")
"""Keys of a configuration that list something for each layer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Numbers of layers and experts, from 0; None takes all."""

    layers: tuple[int, ...] | None = None
    experts: tuple[int, ...] | None = None

    @property
    def takes_all(self) -> bool:
        """Whether nothing is left out."""
        return self.layers is None and self.experts is None


def select(links: Iterable[Link], selection: Selection, geometry: Geometry) -> list[Link]:
    """Links of the selected layers and experts, under their new numbers.

    Args:
        links: All of the model.
        selection: What to take.
        geometry: Sizes of the whole model.

    Raises:
        CheckpointError: A number is out of range, or the selection is empty.
    """
    _check(selection, geometry)
    taken = [new for link in links for new in _of_layers(link, selection.layers)]
    taken = [new for link in taken for new in _of_experts(link, selection.experts, geometry)]
    return sorted(taken, key=lambda link: -1 if link.layer is None else link.layer)


def reduced_config(
    config: Mapping[str, Any], selection: Selection, family: Family, geometry: Geometry
) -> dict[str, Any]:
    """The configuration of what a selection leaves.

    Raises:
        MappingError: The family cannot say which of the remaining layers have experts.
    """
    told = dict(config)
    if selection.experts is not None:
        told[_key(family, "experts", told)] = len(selection.experts)
    if selection.layers is None:
        return told
    told[_key(family, "layers", told)] = len(selection.layers)
    mtp = next((f.key(told) for f in family.fields if f.size == "mtp_layers"), None)
    if mtp in told:
        told[mtp] = 0
    for name in _PER_LAYER:
        if isinstance(told.get(name), list):
            told[name] = [told[name][layer] for layer in selection.layers]
    wanted = tuple(geometry.moe_layers[layer] for layer in selection.layers)
    if family.is_moe and family.geometry(told).moe_layers != wanted:
        told |= family.pattern.write(wanted) or {}
        if family.geometry(told).moe_layers != wanted:
            raise MappingError(
                f"a {family.name} model cannot have its MoE layers where the layers "
                f"{list(selection.layers)} put them; take other layers."
            )
    return told


def _key(family: Family, size: str, config: Mapping[str, Any]) -> str:
    return next(field.key(dict(config)) for field in family.fields if field.size == size)


def _check(selection: Selection, geometry: Geometry) -> None:
    totals = (("layers", geometry.layers), ("experts", geometry.experts))
    for what, total in totals:
        numbers = getattr(selection, what)
        if numbers is None:
            continue
        if not numbers or min(numbers) < 0 or max(numbers) >= total:
            raise CheckpointError(
                f"{what} {list(numbers)} were asked for and the model has {total}; give numbers "
                f"from 0 to {total - 1}."
                if total
                else f"{what} {list(numbers)} were asked for and the model has none."
            )
    if not selection.takes_all and geometry.encoder_moe_layers:
        raise CheckpointError(
            f"layers and experts of {geometry.family} models cannot be taken one by one; convert "
            "the whole model."
        )


def _of_layers(link: Link, layers: Sequence[int] | None) -> Iterator[Link]:
    if layers is None or (link.layer is None and not link.key.startswith(_MTP)):
        yield link
        return
    for new, old in enumerate(layers):
        if link.layer == old:
            yield replace(link, layer=new)


def _of_experts(link: Link, experts: Sequence[int] | None, geometry: Geometry) -> Iterator[Link]:
    if experts is None:
        yield link
    elif link.expert is not None:
        for new, old in enumerate(experts):
            if link.expert == old:
                yield replace(link, expert=new)
    elif _ROUTER in link.key and link.shape[0] == geometry.experts:
        blocks = tuple(_rows(link.blocks, experts))
        yield replace(link, shape=(len(experts), *link.shape[1:]), blocks=blocks)
    else:
        yield link


def _rows(blocks: Sequence[Block], rows: Sequence[int]) -> Iterator[Block]:
    """Some rows of a matrix, runs of them together."""
    (block,) = blocks
    assert block.transform is Transform.NONE, "routers are copied"
    begin = 0
    edges = [i + 1 for i, (a, b) in enumerate(pairwise(rows)) if b != a + 1]
    for end in (*edges, len(rows)):
        yield replace(block, start=block.start + rows[begin], rows=end - begin)
        begin = end
