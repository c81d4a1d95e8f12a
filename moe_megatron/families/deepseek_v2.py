"""DeepSeek-V2: latent attention, dense first layers, shared experts, softmax over all experts."""

from moe_megatron.families.family import Family
from moe_megatron.families.latent import LATENT_ATTENTION, latent_limits
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
    negated,
    same_value,
)

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
        negated("norm_topk_prob", "moe.router.pre_softmax", True),
    ),
    pattern=FIRST_DENSE,
    constants={"model.qk_norm": True, "moe.load_balancing": "seq_aux_loss"},
    limits_of=latent_limits,
    hf_constants={"hidden_act": "silu"},
    latent=True,
)

register_family(DEEPSEEK_V2, preference=7)
