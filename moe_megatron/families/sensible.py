"""Whether the sizes and numbers of a configuration make sense, before anything is made of them.

A number that no model has is a mistake or an attack: billions of layers take all memory, an epsilon
of 2.5 is computed without a word. This module does not know any family.
"""

from collections.abc import Mapping
from typing import Any

from moe_megatron.errors import MappingError
from moe_megatron.families.hf_config import shown

MOST_LAYERS = 4096
"""Layers of one side of a model."""
_MOST_MATRICES = 2**17
"""Layers times experts; the largest published models have about 25,000."""
_MAXIMA = {
    "model.num_layers": MOST_LAYERS,
    "moe.num_experts": 65536,
    "model.num_prediction_layers": 64,
}
_RANGES = {
    "model.norm_epsilon": (0.0, 0.1),
    "model.init_std": (0.0, 10.0),
    "model.rotary_base": (0.5, 1e15),
    "model.activation_clamp": (0.0, 1e6),
    "model.embedding_multiplier": (0.0, 1e6),
    "model.attention_multiplier": (0.0, 1e6),
    "model.residual_multiplier": (0.0, 1e6),
    "model.logits_divisor": (0.0, 1e6),
    "moe.router.scaling": (0.0, 1e3),
    "moe.aux_loss_coef": (-1e-9, 1e3),
    "moe.z_loss_coef": (-1e-9, 1e3),
}
"""What a number must be larger than, and the largest that makes sense."""
_SIZES = {
    "layers": "model.num_layers",
    "hidden": "model.hidden_size",
    "heads": "model.num_attention_heads",
    "key/value heads": "model.num_query_groups",
    "head_dim": "model.head_dim",
    "vocab": "data.vocab_size",
    "ffn": "model.ffn_hidden_size",
}
_MOE_SIZES = {
    "experts": "moe.num_experts",
    "expert_width": "moe.expert_hidden_size",
    "top_k": "moe.top_k",
}
"""Sizes that must be at least 1, by the name that messages give them."""


def check(values: Mapping[str, Any], keys: Mapping[str, str], *, is_moe: bool) -> None:
    """Refuse sizes and numbers that no model has.

    Args:
        values: Fields of a run in nested sections: model, experts and vocabulary.
        keys: The key of `config.json` for dotted fields.
        is_moe: Whether the family has experts.

    Raises:
        MappingError: A number makes no sense; the message names it.
    """
    _check_sizes(values, is_moe=is_moe)
    for name, (low, high) in _RANGES.items():
        value = _number(values, name)
        if value is not None and not low < value <= high:
            key = keys.get(name, "rope_theta")
            raise MappingError(
                f"config.json gives {key} as {shown(value)}, which no model has; it must be more "
                f"than {max(low, 0.0):g} and at most {high:g}. Take the config.json that belongs "
                "to the weights."
            )


def _number(values: Mapping[str, Any], name: str) -> Any:
    found: Any = values
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _check_sizes(values: Mapping[str, Any], *, is_moe: bool) -> None:
    def size(name: str) -> Any:
        section, key = name.split(".")
        return values[section].get(key)

    for word, name in {**_SIZES, **(_MOE_SIZES if is_moe else {})}.items():
        if size(name) is not None and size(name) < 1:
            raise MappingError(f"config.json gives {size(name)} {word}; at least 1 is needed.")
    for name, maximum in _MAXIMA.items():
        if (size(name) or 0) > maximum:
            words = {**_SIZES, **_MOE_SIZES}.items()
            what = next((word for word, ours in words if ours == name), "prediction layers")
            raise MappingError(
                f"config.json gives {size(name)} {what}; at most {maximum} are allowed."
            )
    heads, query_groups = size("model.num_attention_heads"), size("model.num_query_groups")
    if query_groups and heads % query_groups:
        raise MappingError(
            f"config.json has {heads} query heads and {query_groups} key/value heads; "
            "the second number must divide the first. Correct config.json."
        )
    if is_moe and size("moe.top_k") > size("moe.num_experts"):
        raise MappingError(
            f"config.json sends each token to {size('moe.top_k')} of {size('moe.num_experts')} "
            "experts; it cannot be more than there are."
        )
    matrices = size("model.num_layers") * (size("moe.num_experts") if is_moe else 1)
    if matrices > _MOST_MATRICES:
        raise MappingError(
            f"config.json gives {size('model.num_layers')} layers of {size('moe.num_experts')} "
            f"experts each, which no model has; at most {_MOST_MATRICES} experts in all are "
            "converted."
        )
