"""GLM-4.7-Flash: DeepSeek-V3's latent attention and experts, with a list of dense layers."""

from dataclasses import replace

from moe_megatron.families.deepseek_v3 import DEEPSEEK_V3
from moe_megatron.families.geometry import Geometry
from moe_megatron.families.hf_config import HfConfig
from moe_megatron.families.registry import register_family
from moe_megatron.families.rope import parameters
from moe_megatron.families.settings import LISTED_OR_FIRST_DENSE


def _limits(config: HfConfig, geometry: Geometry) -> list[str]:
    found = DEEPSEEK_V3.limits_of(config, geometry)
    if parameters(config).get("partial_rotary_factor", 1.0) == 1.0:
        return found
    return [*found, "Megatron rotates all of qk_rope_head_dim (partial_rotary_factor 1)."]


GLM4_MOE_LITE = replace(
    DEEPSEEK_V3,
    name="glm4_moe_lite",
    architecture="Glm4MoeLiteForCausalLM",
    pattern=LISTED_OR_FIRST_DENSE,
    defaults={
        **{
            "first_k_dense_replace": 1,
            "n_group": 1,
            "n_shared_experts": 1,
            "num_experts_per_tok": 4,
            "q_lora_rank": 768,
        },
        **{"rms_norm_eps": 1e-5, "routed_scaling_factor": 1.8, "topk_group": 1},
    },
    limits_of=_limits,
)

register_family(GLM4_MOE_LITE)
