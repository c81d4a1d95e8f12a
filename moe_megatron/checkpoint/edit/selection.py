"""Selects layers and experts of a model, and renumbers them.

A number may be repeated: an expert that occurs twice in a selection becomes two experts.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from moe_megatron.errors import CheckpointError, MappingError
from moe_megatron.families import Family, Geometry
from moe_megatron.families.links import Block, Link, Transform

_ROUTER = ".router."
_MTP = "mtp."
_PREDICTION = "model.num_prediction_layers"
_PER_LAYER = ("layer_types", "mlp_layer_types")
"""Keys of a configuration whose values are lists with one entry per layer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Numbers of layers and experts, from 0; None takes all."""

    layers: tuple[int, ...] | None = None
    experts: tuple[int, ...] | None = None

    @property
    def takes_all(self) -> bool:
        """Whether nothing is left out."""
        return self.layers is None and self.experts is None


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A model and the links to its weights: the input and output of changes."""

    family: Family
    config: dict[str, Any]
    geometry: Geometry
    links: list[Link]

    def changed(self, config: dict[str, Any], links: list[Link]) -> "Model":
        """A model of the same family with this configuration and these links."""
        geometry = self.family.geometry(config, [b.name for x in links for b in x.blocks])
        return Model(family=self.family, config=config, geometry=geometry, links=links)


def selected(model: Model, selection: Selection) -> Model:
    """The model with only the selected layers and experts, renumbered.

    Raises:
        CheckpointError: A number is out of range, or the selection is empty.
        MappingError: The family cannot express which of the remaining layers have experts.
    """
    geometry = model.geometry
    _check(selection, geometry)
    config, links = model.config, model.links
    if selection.experts is not None:
        config = with_experts(config, len(selection.experts), model.family)
        links = [new for x in links for new in of_experts(x, selection.experts, geometry)]
    if selection.layers is not None:
        config = _of_layers_config(config, selection.layers, model)
        links = without_prediction(links, geometry)
        links = [new for link in links for new in _of_layers(link, selection.layers)]
    links.sort(key=lambda link: -1 if link.layer is None else link.layer)
    return model.changed(config, links)


def with_experts(config: Mapping[str, Any], experts: int, family: Family) -> dict[str, Any]:
    """The configuration with another number of experts."""
    changed = dict(config)
    changed[_key(family, "moe.num_experts", changed)] = experts
    return changed


def config_without_prediction(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """The configuration without layers for multi-token prediction."""
    changed = dict(config)
    key = next((f.key(changed) for f in family.fields if f.ours == _PREDICTION), None)
    if key in changed:
        changed[key] = 0
    return changed


def without_prediction(links: Iterable[Link], geometry: Geometry) -> list[Link]:
    """Links without the layers for multi-token prediction, which come after all others."""
    numbers = range(geometry.layers, geometry.layers + geometry.mtp_layers)
    copies = tuple(f"hugging_face.model.layers.{number}." for number in numbers)
    return [link for link in links if not link.key.startswith((_MTP, *copies))]


def _of_layers_config(
    config: Mapping[str, Any], layers: tuple[int, ...], model: Model
) -> dict[str, Any]:
    family, geometry = model.family, model.geometry
    changed = config_without_prediction(config, family)
    changed[_key(family, "model.num_layers", changed)] = len(layers)
    for name in _PER_LAYER:
        if isinstance(changed.get(name), list):
            changed[name] = [changed[name][layer] for layer in layers]
    wanted = tuple(geometry.moe_layers[layer] for layer in layers)
    if family.is_moe and family.geometry(changed).moe_layers != wanted:
        changed |= family.pattern.write(wanted) or {}
        if family.geometry(changed).moe_layers != wanted:
            raise MappingError(
                f"the layers {list(layers)} give a pattern of MoE layers that no {family.name} "
                "model has; select other layers."
            )
    return _with_windows(changed, layers, model)


def _with_windows(config: dict[str, Any], layers: tuple[int, ...], model: Model) -> dict[str, Any]:
    """The configuration with the windows of the selected layers, whatever rule gave them."""
    before = _windows(model.geometry)
    wanted = [before[layer] for layer in layers]
    if _windows(model.family.geometry(config)) == wanted:
        return config
    kinds = ["sliding_attention" if slides else "full_attention" for slides in wanted]
    changed = config | {"layer_types": kinds}
    if _windows(model.family.geometry(changed)) != wanted:
        raise MappingError(
            f"the layers {list(layers)} give a pattern of sliding windows that no "
            f"{model.family.name} model has; select other layers."
        )
    return changed


def _windows(geometry: Geometry) -> list[bool]:
    """For each layer whether its attention has a window."""
    window = geometry.architecture.model.sliding_window
    if window is None or window.layers is None:
        return [window is not None] * geometry.layers
    return [bool(slides) for slides in window.layers]


def _key(family: Family, ours: str, config: Mapping[str, Any]) -> str:
    return next(field.key(config) for field in family.fields if field.ours == ours)


def _check(selection: Selection, geometry: Geometry) -> None:
    totals = (("layers", geometry.layers), ("experts", geometry.experts))
    for what, total in totals:
        numbers = getattr(selection, what)
        if numbers is None:
            continue
        if not numbers or min(numbers) < 0 or max(numbers) >= total:
            raise CheckpointError(
                f"{what} {list(numbers)} were requested, but the model has {total}; give numbers "
                f"from 0 to {total - 1}."
                if total
                else f"{what} {list(numbers)} were requested, but the model has none."
            )
    if not selection.takes_all and geometry.encoder_moe_layers:
        raise CheckpointError(
            f"layers and experts of {geometry.family} models cannot be selected; convert the whole "
            "model."
        )


def _of_layers(link: Link, layers: Sequence[int]) -> Iterator[Link]:
    if link.layer is None:
        yield link
        return
    for new, old in enumerate(layers):
        if link.layer == old:
            yield replace(link, layer=new)


def of_experts(link: Link, experts: Sequence[int], geometry: Geometry) -> Iterator[Link]:
    """The links that replace a link when only these experts are kept.

    Args:
        link: Any link of the model.
        experts: Numbers of the experts; they are renumbered in this order.
        geometry: Sizes of the whole model.
    """
    if link.expert is not None:
        for new, old in enumerate(experts):
            if link.expert == old:
                yield replace(link, expert=new)
    elif _ROUTER in link.key and link.shape[0] == geometry.experts:
        blocks = tuple(_rows(link.blocks, experts))
        yield replace(link, shape=(len(experts), *link.shape[1:]), blocks=blocks)
    else:
        yield link


def _rows(blocks: Sequence[Block], rows: Sequence[int]) -> Iterator[Block]:
    """The given rows of a matrix as blocks, one for each run of consecutive rows."""
    (block,) = blocks
    assert block.transform is Transform.NONE, "routers are copied"
    begin = 0
    edges = [i + 1 for i, (a, b) in enumerate(pairwise(rows)) if b != a + 1]
    for end in (*edges, len(rows)):
        yield replace(block, start=block.start + rows[begin], rows=end - begin)
        begin = end
