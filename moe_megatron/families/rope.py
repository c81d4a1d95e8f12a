"""Rotary positions: how Hugging Face configurations write them and what Megatron takes.

Old configurations have `rope_theta` and `rope_scaling`; those of transformers 5 have one mapping
`rope_parameters`.
"""

from collections.abc import Mapping
from typing import Any

from moe_megatron.config import ModelConfig
from moe_megatron.errors import MappingError
from moe_megatron.families.hf_config import HfConfig, real, whole

_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_YARN = {"beta_fast": 32, "beta_slow": 1, "original_max_position_embeddings": 4096}


def parameters(config: HfConfig) -> dict[str, Any]:
    """Kind, base and scaling of the rotary positions, whatever the configuration's age.

    Raises:
        MappingError: They are not a mapping.
    """
    found: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        value = config.get(key) or {}
        if not isinstance(value, Mapping):
            raise MappingError(f"config.json gives {key} as {value!r}; a mapping is needed.")
        found |= value
    found.setdefault("rope_type", found.get("type", "default"))
    for key in ("rope_theta", "partial_rotary_factor"):
        if config.get(key) is not None:
            found.setdefault(key, config[key])
    return found


def base(config: HfConfig, default: float = 10000.0) -> float:
    """Base of the rotary frequencies."""
    return real(parameters(config), "rope_theta", default)


def fields(config: HfConfig, *, latent: bool = False) -> dict[str, Any]:
    """What rotary positions say of a run; what Megatron cannot compute of them is in `limits`.

    Args:
        config: Hugging Face configuration.
        latent: Whether the attention is latent (MLA), which has positions of its own.

    Returns:
        Values by dotted name.
    """
    rope = parameters(config)
    rotated = 1.0 if latent else real(rope, "partial_rotary_factor", 1.0)
    return {
        "model.rotary_fraction": rotated,
        "model.rope_scaling": _scaling(rope, latent=latent),
    }


def _scaling(rope: Mapping[str, Any], *, latent: bool) -> dict[str, Any] | None:
    kind, factor = rope["rope_type"], real(rope, "factor", 1.0)
    if latent and kind != "yarn":
        return None
    if latent:
        mscale, all_dim = real(rope, "mscale", 1.0), real(rope, "mscale_all_dim", 0.0)
        return {"kind": "yarn", "factor": factor, "mscale": mscale, "mscale_all_dim": all_dim}
    if kind == "yarn":
        return _yarn(rope)
    if kind == "llama3":
        return {"kind": "llama3", "factor": factor}
    if kind == "linear":
        return {"kind": "linear", "factor": max(1, int(factor))}
    return None


def _yarn(rope: Mapping[str, Any]) -> dict[str, Any]:
    """YaRN of plain attention, of which Megatron takes every number."""
    found: dict[str, Any] = {
        "kind": "yarn",
        "factor": real(rope, "factor"),
        "original_max_position_embeddings": whole(rope, "original_max_position_embeddings"),
        "beta_fast": real(rope, "beta_fast", 32.0),
        "beta_slow": real(rope, "beta_slow", 1.0),
        "round_range": rope.get("truncate") is not False,
    }
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        found |= {"mscale": real(rope, "mscale"), "mscale_all_dim": real(rope, "mscale_all_dim")}
    return found


def write(config: dict[str, Any], model: ModelConfig, before: ModelConfig | None) -> None:
    """Say the rotary positions of a model in its `config.json`.

    Args:
        config: The configuration, which is changed.
        model: The model.
        before: What the configuration says already; None: nothing.
    """
    changes: dict[str, Any] = {}
    if before is None or before.rotary_base != model.rotary_base:
        changes["rope_theta"] = model.rotary_base
    if (before and before.rotary_fraction) != model.rotary_fraction and (
        before is not None or "partial_rotary_factor" in config
    ):
        changes["partial_rotary_factor"] = model.rotary_fraction
    if (before and before.rope_scaling) != model.rope_scaling:
        changes |= _written(model)
    if changes and "rope_parameters" in config:
        config["rope_parameters"] = {**(config["rope_parameters"] or {}), **changes}
    elif changes:
        scaling = {key: changes.pop(key) for key in list(changes) if key not in _OWN_KEYS}
        config |= changes
        if scaling:
            config["rope_scaling"] = scaling


_OWN_KEYS = frozenset({"rope_theta", "partial_rotary_factor"})
"""Keys beside `rope_scaling` in configurations that have it; the others are in it."""


def _written(model: ModelConfig) -> dict[str, Any]:
    """`rope_scaling` of a configuration."""
    scaling = model.rope_scaling
    if scaling is None:
        return {"rope_type": "default"}
    found: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        found |= _LLAMA3
    elif scaling.kind == "yarn":
        found |= _YARN if model.latent_attention else {}
        words = ("original_max_position_embeddings", "beta_fast", "beta_slow")
        for word in (*words, "mscale", "mscale_all_dim"):
            if getattr(scaling, word) is not None:
                found[word] = getattr(scaling, word)
        if not scaling.round_range:
            found["truncate"] = False
    return found


def limits(config: HfConfig, *, latent: bool = False) -> list[str]:
    """What Megatron would compute differently, as sentences."""
    rope = parameters(config)
    kind: object = rope["rope_type"]
    known: dict[str, Mapping[str, float]]
    known = {"default": {}, "linear": {}, "llama3": _LLAMA3, "yarn": _YARN if latent else {}}
    if not isinstance(kind, str) or kind not in known:
        return [f"Megatron has no '{kind}' rotary positions here; it would use plain ones."]
    if latent and kind in {"linear", "llama3"}:
        return ["Megatron stretches the positions of latent attention by YaRN alone."]
    fixed = {key: value for key, value in known[kind].items() if rope.get(key, value) != value}
    if fixed:
        return [f"Megatron fixes {', '.join(fixed)} of '{kind}' rotary positions to other values."]
    if kind == "yarn" and not latent and real(rope, "partial_rotary_factor", 1.0) != 1.0:
        return ["Megatron's YaRN positions rotate whole heads (partial_rotary_factor 1)."]
    if kind == "yarn" and rope.get("attention_factor") is not None:
        return ["Megatron computes the factor of YaRN's attention (attention_factor) by itself."]
    if kind == "linear" and real(rope, "factor", 1.0) % 1:
        return ["Megatron scales rotary positions by whole numbers only."]
    if base(config) % 1:
        return ["Megatron takes a whole number as base of the rotary frequencies."]
    return []
