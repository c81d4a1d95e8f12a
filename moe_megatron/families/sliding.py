"""Attention that looks back a limited number of tokens, as Megatron flags."""

from typing import Any

from moe_megatron.families.hf_config import HfConfig, listed, whole


def window_flags(config: HfConfig) -> dict[str, Any]:
    """The window and the layers that have it; nothing where it spans the longest sequence.

    Hugging Face counts the token itself as part of the window, Megatron only those before it.
    """
    window, kinds = whole(config, "sliding_window", 0), listed(config, "layer_types")
    if not window or not config.get("use_sliding_window", "max_window_layers" not in config):
        return {}
    if window >= whole(config, "max_position_embeddings"):
        return {}
    if kinds:
        slides = [kind == "sliding_attention" for kind in kinds]
    else:
        first = whole(config, "max_window_layers", 0)
        slides = [layer >= first for layer in range(whole(config, "num_hidden_layers"))]
    if not any(slides):
        return {}
    flags: dict[str, Any] = {"window-size": f"{window - 1},0"}
    if not all(slides):
        flags["window-attn-skip-freq"] = f"[{','.join(str(int(s)) for s in slides)}]"
    return flags
