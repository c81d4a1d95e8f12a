"""HunYuan-A13B: queries and keys are normalized after their rotation; one shared expert."""

from collections import ChainMap
from dataclasses import dataclass
from typing import Any

from moe_megatron.errors import MappingError
from moe_megatron.families.family import Family
from moe_megatron.families.fields import only
from moe_megatron.families.hf_config import HfConfig
from moe_megatron.families.registry import register_family
from moe_megatron.families.rows import (
    ATTENTION,
    OUTSIDE,
    experts,
    qk_norms,
    router,
    shared_experts,
)
from moe_megatron.families.settings import (
    ATTENTION_BIASES,
    HEAD_FIELDS,
    MODEL_FIELDS,
    Field,
    same_value,
)

_UNREAD = (
    "add_classification_head anyres_pooling_size cla_share_factor class_num dense_list "
    "eod_token_id group_limited_greedy im_end_id im_newline_id im_start_id "
    "image_token_id kv_lora_rank mask_init_id max_image_size max_video_frames moe_drop_tokens "
    "moe_random_routing_dropped_token n_group norm_type num_media_embeds org_vocab_size pool_type "
    "position_embedding_xdrope q_lora_rank qk_nope_head_dim qk_rope_head_dim skip_cls_token "
    "text_end_id text_start_id topk_group use_mla v_head_dim video_end_id video_start_id"
).split()
_SHOWN = ("attention_head_dim", "moe_intermediate_size", "num_shared_expert")


@dataclass(frozen=True, slots=True, kw_only=True)
class _OfEachLayer(Field):
    """A number, or a list of the same number for each layer."""

    def value(self, config: HfConfig) -> Any:
        given = config.get(self.hf)
        if not isinstance(given, list):
            return super(_OfEachLayer, self).value(config)
        if not given or any(number != given[0] for number in given):
            raise MappingError(
                f"config.json gives layers different numbers of {self.hf}, {given[:8]}; Megatron "
                "has one for all layers."
            )
        of_all: HfConfig = ChainMap({self.hf: given[0]}, config)  # type: ignore[arg-type]  # only read
        return super(_OfEachLayer, self).value(of_all)


HUNYUAN_V1_MOE = Family(
    name="hunyuan_v1_moe",
    architecture="HunYuanMoEV1ForCausalLM",
    rows=(
        *(*OUTSIDE, *ATTENTION, *qk_norms(names=("query_layernorm", "key_layernorm"))),
        *(router("mlp.gate.wg.weight"), *experts(), *shared_experts("shared_mlp")),
    ),
    fields=(
        *MODEL_FIELDS,
        *HEAD_FIELDS,
        *ATTENTION_BIASES,
        _OfEachLayer(hf="num_experts", ours="moe.num_experts", default=1),
        _OfEachLayer(hf="moe_topk", ours="moe.top_k", default=1),
        same_value("intermediate_size", "moe.expert_hidden_size"),
        same_value("intermediate_size", "moe.shared_expert_hidden_size"),
    ),
    constants={"model.qk_norm": True, "model.qk_norm_after_rotation": True},
    defaults={"rms_norm_eps": 1e-5},
    checked=(
        only("mlp_bias", False, because="MLPs have no biases here"),
        only("moe_layer_num_skipped", 0, because="every layer has experts"),
        only("norm_topk_prob", True, because="the weights of a token sum to 1"),
        only("routed_scaling_factor", 1.0, because="the weights of a token sum to 1"),
        only("use_cla", False, because="every layer has keys and values of its own"),
        only("use_mixed_mlp_moe", True, because="every token visits the shared expert"),
        only("use_qk_norm", True, because="queries and keys are normalized"),
        only("use_rotary_pos_emb", True, because="positions are rotary"),
    ),
    irrelevant={
        **dict.fromkeys(_UNREAD, "read by other models of the makers, and not by transformers"),
        **dict.fromkeys(_SHOWN, "transformers takes other keys, and the tensors show it"),
    },
    hf_constants={"hidden_act": "silu"},
)

register_family(HUNYUAN_V1_MOE)
