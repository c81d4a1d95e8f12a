"""Sliding-window attention as Hugging Face configurations describe it."""

from typing import Any

from moe_megatron.families.hf_config import HfConfig, read_int, read_list


def sliding_window(config: HfConfig) -> dict[str, Any]:
    """The window and the layers that have it, as dotted fields of a run.

    Empty if the window spans the longest sequence. Hugging Face counts the token itself as part of
    the window; Megatron and this package count only the tokens before it.
    """
    length, kinds = read_int(config, "sliding_window", 0), read_list(config, "layer_types")
    if not length or not config.get("use_sliding_window", "max_window_layers" not in config):
        return {}
    if length >= read_int(config, "max_position_embeddings"):
        return {}
    if kinds:
        slides = [kind == "sliding_attention" for kind in kinds]
    else:
        first = read_int(config, "max_window_layers", 0)
        slides = [layer >= first for layer in range(read_int(config, "num_hidden_layers"))]
    if not any(slides):
        return {}
    layers = None if all(slides) else [int(slide) for slide in slides]
    return {"model.sliding_window": {"size": length - 1, "layers": layers}}
