"""HunYuan-A13B: queries and keys are normalized after their rotation; one shared expert."""

from dataclasses import dataclass
from typing import Any

from moe_megatron.errors import MappingError
from moe_megatron.families.family import Family
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
    with_defaults,
)


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
        return super(_OfEachLayer, self).value({**config, self.hf: given[0]})


HUNYUAN_V1_MOE = Family(
    name="hunyuan_v1_moe",
    architecture="HunYuanMoEV1ForCausalLM",
    rows=(
        *(*OUTSIDE, *ATTENTION, *qk_norms(names=("query_layernorm", "key_layernorm"))),
        *(router("mlp.gate.wg.weight"), *experts(), *shared_experts("shared_mlp")),
    ),
    fields=(
        *with_defaults(MODEL_FIELDS, rms_norm_eps=1e-5),
        *HEAD_FIELDS,
        *ATTENTION_BIASES,
        _OfEachLayer(hf="num_experts", ours="moe.num_experts", default=1),
        _OfEachLayer(hf="moe_topk", ours="moe.top_k", default=1),
        same_value("intermediate_size", "moe.expert_hidden_size"),
        same_value("intermediate_size", "moe.shared_expert_hidden_size"),
    ),
    constants={"model.qk_norm": True, "model.qk_norm_after_rotation": True},
    hf_constants={"hidden_act": "silu"},
)

register_family(HUNYUAN_V1_MOE)
