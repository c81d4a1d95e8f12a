"""Rotary positions: how Hugging Face configurations write them and what Megatron takes.

Old configurations have `rope_theta` and `rope_scaling`; those of transformers 5 have one mapping
`rope_parameters`.
"""

from collections.abc import Mapping
from typing import Any

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


def embedding(config: HfConfig, *, latent: bool = False) -> str:
    """`model.position_embedding` of a run; latent attention has kinds of its own."""
    return "yarn" if not latent and parameters(config)["rope_type"] == "yarn" else "rope"


def flags(config: HfConfig, *, latent: bool = False) -> dict[str, Any]:
    """Megatron's flags for positions; what it cannot compute is in `limits`.

    Args:
        config: Hugging Face configuration.
        latent: Whether the attention is latent (MLA), which has positions of its own.
    """
    rope = parameters(config)
    kind, factor = rope["rope_type"], real(rope, "factor", 1.0)
    rotated = real(rope, "partial_rotary_factor", 1.0)
    found: dict[str, Any] = {"rope-type": "rope"} if latent else {}
    if rotated != 1.0 and not latent:
        found["rotary-percent"] = rotated
    if latent and kind == "yarn":
        found |= {"rope-type": "yarn", "rotary-scaling-factor": factor}
        found |= {
            "mscale": real(rope, "mscale", 1.0),
            "mscale-all-dim": real(rope, "mscale_all_dim", 0.0),
        }
    elif kind == "yarn":
        found |= _yarn_flags(rope)
    elif kind == "llama3":
        found |= {"use-rope-scaling": True, "rope-scaling-factor": factor}
    elif kind == "linear":
        found["rotary-seq-len-interpolation-factor"] = int(factor)
    return found


def _yarn_flags(rope: Mapping[str, Any]) -> dict[str, Any]:
    """YaRN of plain attention, of which Megatron takes every number."""
    found: dict[str, Any] = {
        "rotary-scaling-factor": real(rope, "factor"),
        "yarn-original-max-position-embeddings": whole(rope, "original_max_position_embeddings"),
        "yarn-beta-fast": real(rope, "beta_fast", 32.0),
        "yarn-beta-slow": real(rope, "beta_slow", 1.0),
    }
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        found |= {"mscale": real(rope, "mscale"), "mscale-all-dim": real(rope, "mscale_all_dim")}
    if rope.get("truncate") is False:
        found["no-yarn-correction-range-round-to-int"] = True
    return found


def limits(config: HfConfig, *, latent: bool = False) -> list[str]:
    """What Megatron would compute differently, as sentences."""
    rope = parameters(config)
    kind: object = rope["rope_type"]
    known: dict[str, Mapping[str, float]]
    known = {"default": {}, "linear": {}, "llama3": _LLAMA3, "yarn": _YARN if latent else {}}
    if not isinstance(kind, str) or kind not in known:
        return [f"Megatron has no '{kind}' rotary positions here; it would use plain ones."]
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
