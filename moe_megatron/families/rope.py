"""Rotary positions: how Hugging Face configurations write them, and what Megatron supports.

Older configurations have `rope_theta` and `rope_scaling`; those of transformers 5 have a single
mapping, `rope_parameters`.
"""

from collections.abc import Mapping
from typing import Any

from moe_megatron.config import ModelConfig
from moe_megatron.errors import MappingError
from moe_megatron.families.hf_config import HfConfig, read_float, read_int, shown

_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_YARN = {"beta_fast": 32, "beta_slow": 1, "original_max_position_embeddings": 4096}


KEYS = ("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor")
"""Keys of `config.json` that this module reads."""
_WITH_ALPHA = frozenset({"hunyuan_v1_moe"})
"""Families in which `alpha` scales the base; in others transformers does not read it."""
EXPRESSED = (
    "kind",
    "factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "round_range",
)
"""Fields of `model.rope_scaling` that `config.json` can express."""


def parameters(config: HfConfig) -> dict[str, Any]:
    """Kind, base and scaling of the rotary positions, from old and new configurations alike.

    Raises:
        MappingError: `rope_scaling` or `rope_parameters` is not a mapping.
    """
    found: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        value = config.get(key) or {}
        if not isinstance(value, Mapping):
            raise MappingError(f"config.json gives {key} as {shown(value)}; a mapping is needed.")
        if any(isinstance(entry, Mapping) for entry in value.values()):
            raise MappingError(
                f"config.json gives {key} by kind of layer ({shown(value)}), but rotary positions "
                "are those of all layers here; this model cannot be converted."
            )
        found |= value
    found.setdefault("rope_type", found.get("type", "default"))
    for key in ("rope_theta", "partial_rotary_factor"):
        if config.get(key) is not None:
            found.setdefault(key, config[key])
    if _is_larger_base(config, found):
        found |= {"rope_type": "default", "larger_base": True}
    return found


def _is_larger_base(config: HfConfig, rope: Mapping[str, Any]) -> bool:
    """Whether the kind is HunYuan's: it is called dynamic, but its `alpha` only scales the base."""
    named = config.get("model_type") in _WITH_ALPHA and rope["rope_type"] == "dynamic"
    return bool(named and rope.get("alpha"))


def base(config: HfConfig, default: float = 10000.0) -> float:
    """Base of the rotary frequencies."""
    rope = parameters(config)
    theta = read_float(rope, "rope_theta", default)
    if not rope.get("larger_base"):
        return theta
    alpha = read_float(rope, "alpha")
    heads = max(1, read_int(config, "num_attention_heads"))
    width = read_int(config, "head_dim", read_int(config, "hidden_size") // heads)
    return float(theta * alpha ** (width / max(1, width - 2)))


def fields(config: HfConfig, *, latent: bool = False) -> dict[str, Any]:
    """Fields of a run that describe the rotary positions; `limits` lists what Megatron lacks.

    Args:
        config: Hugging Face configuration.
        latent: Whether attention is latent (MLA), which has positions of its own.

    Returns:
        Values by dotted name.
    """
    rope = parameters(config)
    rotated = 1.0 if latent else read_float(rope, "partial_rotary_factor", 1.0)
    return {
        "model.rotary_fraction": rotated,
        "model.rope_scaling": _scaling(rope, latent=latent),
    }


def _scaling(rope: Mapping[str, Any], *, latent: bool) -> dict[str, Any] | None:
    kind, factor = rope["rope_type"], read_float(rope, "factor", 1.0)
    if latent and kind != "yarn":
        return None
    if latent:
        return _latent_yarn(rope)
    if kind == "yarn":
        return _yarn(rope)
    if kind == "llama3":
        return {"kind": "llama3", "factor": factor}
    if kind == "linear":
        return {"kind": "linear", "factor": max(1, int(factor))}
    return None


def _latent_yarn(rope: Mapping[str, Any]) -> dict[str, Any]:
    """YaRN for latent attention; what has Megatron's default is left to it."""
    found: dict[str, Any] = {
        "kind": "yarn",
        "factor": read_float(rope, "factor", 1.0),
        "mscale": read_float(rope, "mscale", 1.0),
        "mscale_all_dim": read_float(rope, "mscale_all_dim", 0.0),
    }
    given = {key: read_float(rope, key, default) for key, default in _YARN.items()}
    return found | {key: value for key, value in given.items() if value != _YARN[key]}


def _yarn(rope: Mapping[str, Any]) -> dict[str, Any]:
    """YaRN for plain attention, of which Megatron supports every parameter."""
    found: dict[str, Any] = {
        "kind": "yarn",
        "factor": read_float(rope, "factor"),
        "original_max_position_embeddings": read_int(rope, "original_max_position_embeddings"),
        "beta_fast": read_float(rope, "beta_fast", 32.0),
        "beta_slow": read_float(rope, "beta_slow", 1.0),
        "round_range": rope.get("truncate") is not False,
    }
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        found |= {
            "mscale": read_float(rope, "mscale"),
            "mscale_all_dim": read_float(rope, "mscale_all_dim"),
        }
    return found


def write(config: dict[str, Any], model: ModelConfig, before: ModelConfig | None) -> None:
    """Write the rotary positions of a model to its `config.json`.

    Args:
        config: The configuration; changed in place.
        model: The model.
        before: The model that the configuration already describes; None: none.
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
    if "rope_theta" in changes:
        _forget_alpha(config)
    if changes and "rope_parameters" in config:
        config["rope_parameters"] = {**(config["rope_parameters"] or {}), **changes}
    elif changes:
        scaling = {key: changes.pop(key) for key in list(changes) if key not in _OWN_KEYS}
        config |= changes
        if scaling:
            config["rope_scaling"] = scaling


def _forget_alpha(config: dict[str, Any]) -> None:
    """Make the base that is written count as it is."""
    for key in ("rope_scaling", "rope_parameters"):
        rope = config.get(key)
        if isinstance(rope, Mapping) and rope.get("alpha"):
            kept = {k: v for k, v in rope.items() if k not in {"alpha", "type", "rope_type"}}
            config[key] = {**kept, "rope_type": "default"}


_OWN_KEYS = frozenset({"rope_theta", "partial_rotary_factor"})
"""In old configurations, keys next to `rope_scaling`; all other keys are inside it."""


def _written(model: ModelConfig) -> dict[str, Any]:
    """The entries of `rope_scaling` that describe the model."""
    scaling = model.rope_scaling
    if scaling is None:
        return {"rope_type": "default"}
    found: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        found |= _LLAMA3
    elif scaling.kind == "yarn":
        found |= _YARN if model.latent_attention else {}
        names = ("original_max_position_embeddings", "beta_fast", "beta_slow")
        for name in (*names, "mscale", "mscale_all_dim"):
            if getattr(scaling, name) is not None:
                found[name] = getattr(scaling, name)
        if not scaling.round_range:
            found["truncate"] = False
    return found


_ROUNDING = 2**-25
"""Relative difference of two bases whose frequencies are the same number in float32."""


def limits(config: HfConfig, *, latent: bool = False) -> list[str]:
    """What Megatron would compute differently, as sentences."""
    rope = parameters(config)
    kind: object = rope["rope_type"]
    known: dict[str, Mapping[str, float]]
    known = {"default": {}, "linear": {}, "llama3": _LLAMA3, "yarn": {}}
    if not isinstance(kind, str) or kind not in known:
        return [f"Megatron has no '{kind}' rotary positions here; it would use plain ones."]
    if latent and kind in {"linear", "llama3"}:
        return ["Megatron stretches the positions of latent attention only by YaRN."]
    fixed = {key: value for key, value in known[kind].items() if rope.get(key, value) != value}
    if fixed:
        return [f"Megatron fixes {', '.join(fixed)} of '{kind}' rotary positions to other values."]
    if kind == "yarn" and latent and rope.get("truncate") is False:
        return ["Megatron rounds the range of YaRN in latent attention (truncate true)."]
    if kind == "yarn" and not latent and read_float(rope, "partial_rotary_factor", 1.0) != 1.0:
        return ["Megatron's YaRN positions rotate whole heads (partial_rotary_factor 1)."]
    if kind == "yarn" and rope.get("attention_factor") is not None:
        return ["Megatron computes YaRN's attention_factor itself and ignores a given one."]
    if kind == "linear" and read_float(rope, "factor", 1.0) % 1:
        return ["Megatron scales rotary positions by whole numbers only."]
    if abs(base(config) - round(base(config))) > _ROUNDING * base(config):
        return ["Megatron supports only a whole number as base of the rotary frequencies."]
    return []
