"""GLM-4.7-Flash: DeepSeek-V3's latent attention and experts, with a list of dense layers."""

from dataclasses import replace
from typing import Any

from moe_megatron.families.deepseek_v3 import DEEPSEEK_V3
from moe_megatron.families.hf_config import HfConfig, read_list
from moe_megatron.families.registry import register_family
from moe_megatron.families.settings import Pattern


def _read_kinds(config: HfConfig, layers: int) -> tuple[bool, ...]:
    kinds = read_list(config, "mlp_layer_types")
    if not kinds:
        return tuple(layer >= 1 for layer in range(layers))
    return tuple(layer < len(kinds) and kinds[layer] == "sparse" for layer in range(layers))


def _write_kinds(layers: tuple[bool, ...]) -> dict[str, Any]:
    return {"mlp_layer_types": ["sparse" if moe else "dense" for moe in layers]}


GLM4_MOE_LITE = replace(
    DEEPSEEK_V3,
    name="glm4_moe_lite",
    architecture="Glm4MoeLiteForCausalLM",
    pattern=Pattern(_read_kinds, _write_kinds),
)

register_family(GLM4_MOE_LITE)
