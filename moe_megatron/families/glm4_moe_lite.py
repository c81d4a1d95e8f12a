"""GLM-4.7-Flash: DeepSeek-V3's latent attention and experts, with a list of dense layers."""

from dataclasses import replace
from typing import Any

from moe_megatron.families.deepseek_v3 import DEEPSEEK_V3
from moe_megatron.families.fields import only
from moe_megatron.families.geometry import Geometry
from moe_megatron.families.hf_config import HfConfig, read_list
from moe_megatron.families.registry import register_family
from moe_megatron.families.rope import parameters
from moe_megatron.families.settings import Pattern


def _read_kinds(config: HfConfig, layers: int) -> tuple[bool, ...]:
    kinds = read_list(config, "mlp_layer_types")
    if not kinds:
        return tuple(layer >= 1 for layer in range(layers))
    return tuple(layer < len(kinds) and kinds[layer] == "sparse" for layer in range(layers))


def _write_kinds(layers: tuple[bool, ...]) -> dict[str, Any]:
    return {"mlp_layer_types": ["sparse" if moe else "dense" for moe in layers]}


def _limits(config: HfConfig, geometry: Geometry) -> list[str]:
    found = DEEPSEEK_V3.limits_of(config, geometry)
    if parameters(config).get("partial_rotary_factor", 1.0) == 1.0:
        return found
    return [*found, "Megatron rotates all of qk_rope_head_dim (partial_rotary_factor 1)."]


GLM4_MOE_LITE = replace(
    DEEPSEEK_V3,
    name="glm4_moe_lite",
    architecture="Glm4MoeLiteForCausalLM",
    pattern=Pattern(_read_kinds, _write_kinds, keys=("mlp_layer_types",)),
    defaults={
        **{"n_group": 1, "n_shared_experts": 1, "num_experts_per_tok": 4, "q_lora_rank": 768},
        **{"rms_norm_eps": 1e-5, "routed_scaling_factor": 1.8, "topk_group": 1},
    },
    checked=(
        *DEEPSEEK_V3.checked,
        only("first_k_dense_replace", 1, because="mlp_layer_types lists the dense layers"),
    ),
    limits_of=_limits,
)

register_family(GLM4_MOE_LITE)
