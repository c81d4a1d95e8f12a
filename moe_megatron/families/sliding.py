"""Sliding-window attention as Hugging Face configurations describe it.

Families agree on the length and differ in which layers have it where the configuration lists none.
"""

from collections.abc import Callable
from typing import Any

from moe_megatron.errors import MappingError
from moe_megatron.families.hf_config import HfConfig, read_int, read_list, shown

Slides = Callable[[HfConfig], list[bool]]
"""For each layer whether it has a window."""

KINDS = {"sliding_attention": True, "full_attention": False}
"""Kinds of layers, and whether such a layer has a window."""
WINDOW = ("sliding_window",)
"""Keys that are read where all layers have the window."""
SWITCHED = (*WINDOW, "use_sliding_window")
"""Keys that are read where a switch turns the window on."""
BY_LAYER = (*SWITCHED, "max_window_layers", "layer_types")
"""Keys that are read where layers differ."""


def every_layer(config: HfConfig) -> list[bool]:
    """All layers have the window."""
    return [True] * read_int(config, "num_hidden_layers")


def as_listed(otherwise: Slides) -> Slides:
    """The layers that `layer_types` lists; without the list, those of another rule."""

    def slides(config: HfConfig) -> list[bool]:
        kinds = read_list(config, "layer_types")
        if unknown := [kind for kind in kinds if not isinstance(kind, str) or kind not in KINDS]:
            raise MappingError(
                f"config.json gives {shown(unknown[0])} in layer_types; only layers with "
                "full_attention or sliding_attention are computed."
            )
        if kinds and len(kinds) != read_int(config, "num_hidden_layers"):
            raise MappingError(
                f"config.json lists {len(kinds)} layer_types for {config['num_hidden_layers']} "
                "layers; give one for each."
            )
        return [KINDS[kind] for kind in kinds] or otherwise(config)

    return slides


def from_layer(config: HfConfig) -> list[bool]:
    """Qwen: layers from `max_window_layers` on."""
    first = read_int(config, "max_window_layers", 28)
    return [layer >= first for layer in range(read_int(config, "num_hidden_layers"))]


def alternating(config: HfConfig) -> list[bool]:
    """GPT-OSS: the first layer and every second one after it."""
    return [layer % 2 == 0 for layer in range(read_int(config, "num_hidden_layers"))]


def alternating_up_to(config: HfConfig) -> list[bool]:
    """Qwen2-MoE: the same, before `max_window_layers`."""
    last = read_int(config, "max_window_layers", 28)
    return [slides and layer < last for layer, slides in enumerate(alternating(config))]


def sliding_window(
    slides: Slides, *, switched: bool = False
) -> Callable[[HfConfig], dict[str, Any]]:
    """A function that gives the window, and the layers that have it, as dotted fields of a run.

    They are empty if the window spans the longest sequence. Hugging Face counts the token itself as
    part of the window; Megatron and this package count only the tokens before it.

    Args:
        slides: Which layers have a window.
        switched: Whether there is a window only where `use_sliding_window` is true.
    """

    def fields(config: HfConfig) -> dict[str, Any]:
        length = read_int(config, "sliding_window", 0)
        if not length or (switched and not config.get("use_sliding_window")):
            return {}
        if length >= read_int(config, "max_position_embeddings"):
            return {}
        found = slides(config)
        if not any(found):
            return {}
        layers = None if all(found) else [int(slide) for slide in found]
        return {"model.sliding_window": {"size": length - 1, "layers": layers}}

    return fields
