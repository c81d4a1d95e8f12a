"""DeepSeek-V2: latent attention, dense first layers, shared experts, softmax over all experts."""

from typing import Any

from moe_megatron.families.family import Family
from moe_megatron.families.fields import only
from moe_megatron.families.geometry import Geometry
from moe_megatron.families.hf_config import HfConfig
from moe_megatron.families.latent import (
    LATENT_ATTENTION,
    LATENT_CHECKED,
    LATENT_IRRELEVANT,
    group_limits,
)
from moe_megatron.families.registry import register_family
from moe_megatron.families.rows import (
    DENSE_MLP,
    OUTSIDE,
    experts,
    router,
    shared_experts,
)
from moe_megatron.families.settings import (
    FIRST_DENSE,
    GROUP_FIELDS,
    LATENT_FIELDS,
    MODEL_FIELDS,
    SHARED_EXPERTS,
    moe_fields,
    same_value,
)

_GROUPS = "group_limited_greedy"


def _without_groups(config: HfConfig) -> dict[str, Any]:
    """Groups of experts count only with one way to choose."""
    if config["topk_method"] == _GROUPS:
        return {}
    return {"moe.router.expert_groups": 1, "moe.router.group_top_k": 1}


def _limits(config: HfConfig, geometry: Geometry) -> list[str]:
    grouped = config["topk_method"] == _GROUPS
    return group_limits(config, geometry, summed=1) if grouped else []


DEEPSEEK_V2 = Family(
    name="deepseek_v2",
    architecture="DeepseekV2ForCausalLM",
    rows=(*OUTSIDE, *LATENT_ATTENTION, *DENSE_MLP, router(), *experts(), *shared_experts()),
    fields=(
        *MODEL_FIELDS,
        *LATENT_FIELDS,
        *moe_fields("n_routed_experts", "moe_intermediate_size", None),
        *GROUP_FIELDS,
        SHARED_EXPERTS,
        same_value("aux_loss_alpha", "moe.aux_loss_coef", 0.001),
    ),
    pattern=FIRST_DENSE,
    constants={
        "model.qk_norm": True,
        "moe.load_balancing": "seq_aux_loss",
        "moe.router.pre_softmax": True,
    },
    computed_fields=_without_groups,
    defaults={"n_shared_experts": 2, "q_lora_rank": 1536, "topk_method": "greedy"},
    reads=("topk_method",),
    checked=(
        *LATENT_CHECKED,
        only("topk_method", "greedy", _GROUPS, because="experts are chosen in these ways"),
        only("norm_topk_prob", False, because="weights are not normalized in this family"),
        only("scoring_func", "softmax", because="the router scores by a softmax"),
    ),
    irrelevant=LATENT_IRRELEVANT,
    limits_of=_limits,
    hf_constants={"hidden_act": "silu", "topk_method": _GROUPS},
    latent=True,
)

register_family(DEEPSEEK_V2, preference=7)
