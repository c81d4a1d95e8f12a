"""Attention that looks back a limited number of tokens, as Hugging Face configurations say it."""

from typing import Any

from moe_megatron.families.hf_config import HfConfig, listed, whole


def window(config: HfConfig) -> dict[str, Any]:
    """The window and the layers that have it, by dotted name of a run.

    Nothing where it spans the longest sequence. Hugging Face counts the token itself as part of the
    window, Megatron and we only those before it.
    """
    length, kinds = whole(config, "sliding_window", 0), listed(config, "layer_types")
    if not length or not config.get("use_sliding_window", "max_window_layers" not in config):
        return {}
    if length >= whole(config, "max_position_embeddings"):
        return {}
    if kinds:
        slides = [kind == "sliding_attention" for kind in kinds]
    else:
        first = whole(config, "max_window_layers", 0)
        slides = [layer >= first for layer in range(whole(config, "num_hidden_layers"))]
    if not any(slides):
        return {}
    layers = None if all(slides) else [int(slide) for slide in slides]
    return {"model.sliding_window": {"size": length - 1, "layers": layers}}
