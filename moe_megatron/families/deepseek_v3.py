"""DeepSeek-V3 and R1: like V2, with a biased sigmoid router and multi-token prediction.

Latent attention is that of `deepseek_v2`. Published checkpoints hold copies of the embedding for
multi-token prediction; these are kept unchanged under `hugging_face.`, until Megatron trains the
model: what it saves has the embedding alone.
"""

from dataclasses import replace

from moe_megatron.families.deepseek_v2 import DEEPSEEK_V2
from moe_megatron.families.family import no_fields, sigmoid_limits
from moe_megatron.families.fields import only
from moe_megatron.families.latent import (
    LATENT_CHECKED,
    LATENT_IRRELEVANT,
    MTP,
    group_limits,
    latent_limits,
    mtp_copies,
    mtp_fields,
    mtp_layout,
)
from moe_megatron.families.registry import register_family
from moe_megatron.families.rows import EXPERT_BIAS
from moe_megatron.families.settings import (
    GROUP_FIELDS,
    LATENT_FIELDS,
    MODEL_FIELDS,
    MTP_FIELD,
    SHARED_EXPERTS,
    moe_fields,
)

DEEPSEEK_V3 = replace(
    DEEPSEEK_V2,
    name="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    rows=(*DEEPSEEK_V2.rows, EXPERT_BIAS, *MTP),
    extra_links=mtp_copies,
    fields=(
        *MODEL_FIELDS,
        *LATENT_FIELDS,
        *moe_fields("n_routed_experts", "moe_intermediate_size", None),
        *GROUP_FIELDS,
        SHARED_EXPERTS,
        MTP_FIELD,
    ),
    fields_from_names=mtp_fields,
    layout=mtp_layout,
    computed_fields=no_fields,
    defaults={
        **{"first_k_dense_replace": 3, "n_group": 8, "n_shared_experts": 1, "topk_group": 4},
        **{"num_experts_per_tok": 8, "num_nextn_predict_layers": 1, "q_lora_rank": 1536},
        "routed_scaling_factor": 2.5,
    },
    constants={
        "model.qk_norm": True,
        "moe.router.score_function": "sigmoid",
        "moe.expert_bias": True,
        "moe.load_balancing": "none",
    },
    limits_of=lambda config, geometry: [
        *latent_limits(config, geometry),
        *group_limits(config, geometry),
        *sigmoid_limits(config, geometry),
    ],
    reads=("norm_topk_prob", "rope_interleave"),
    irrelevant={**LATENT_IRRELEVANT, "aux_loss_alpha": "weight of a loss in training"},
    checked=(
        *LATENT_CHECKED,
        only("scoring_func", "sigmoid", because="the router scores by sigmoids"),
        only("topk_method", "noaux_tc", because="groups and a bias select the experts"),
    ),
    hf_constants={"hidden_act": "silu", "norm_topk_prob": True, "scoring_func": "sigmoid"},
)

register_family(DEEPSEEK_V3, preference=6)
