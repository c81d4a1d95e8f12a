"""ERNIE 4.5: interleaved rotary positions, dense layers, a softmax router with a balancing bias.

Published checkpoints may hold a layer of multi-token prediction, which transformers does not read;
it is kept unchanged under `hugging_face.`.
"""

from dataclasses import replace
from typing import Any

from moe_megatron.families.family import Family
from moe_megatron.families.fields import only
from moe_megatron.families.hf_config import HfConfig, read_int
from moe_megatron.families.registry import register_family
from moe_megatron.families.rows import (
    ATTENTION,
    DENSE_MLP,
    EXPERT_BIAS,
    LAYER,
    OUTSIDE,
    experts,
    router,
    shared_experts,
)
from moe_megatron.families.settings import (
    HEAD_FIELDS,
    MODEL_FIELDS,
    SHARED_EXPERTS,
    Pattern,
    same_value,
)
from moe_megatron.families.table import Form, Source

_LAYER_KEYS = ("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval")
_BIAS = "moe_statics.e_score_correction_bias"


def _read_layers(config: HfConfig, layers: int) -> tuple[bool, ...]:
    start = read_int(config, "moe_layer_start_index", 1)
    step = max(1, read_int(config, "moe_layer_interval", 1))
    last = config.get("moe_layer_end_index")
    last = layers - 1 if last == -1 else read_int(config, "moe_layer_end_index", layers - 1)
    return tuple((n + 1) % step == 0 and start <= n <= last for n in range(layers))


def _write_layers(layers: tuple[bool, ...]) -> dict[str, Any] | None:
    first, last = layers.index(True), len(layers) - 1 - layers[::-1].index(True)
    if not all(layers[first : last + 1]):
        return None
    return {
        "moe_layer_start_index": first,
        "moe_layer_end_index": last,
        "moe_layer_interval": 1,
    }


ERNIE4_5_MOE = Family(
    name="ernie4_5_moe",
    architecture="Ernie4_5_MoeForCausalLM",
    rows=(
        *OUTSIDE,
        *ATTENTION,
        *DENSE_MLP,
        router(),
        replace(
            EXPERT_BIAS,
            source=Source((f"{LAYER}mlp.{_BIAS}",), Form.LINE),
            fused=Source((f"{LAYER}mlp.gate.{_BIAS}",), Form.LINE),
        ),
        *experts(),
        *shared_experts(),
    ),
    fields=(
        *MODEL_FIELDS,
        *HEAD_FIELDS,
        same_value("moe_num_experts", "moe.num_experts", 64, "num_experts"),
        same_value("moe_k", "moe.top_k", 6, "num_experts_per_tok"),
        same_value("moe_intermediate_size", "moe.expert_hidden_size", 1536),
        same_value("router_aux_loss_coef", "moe.aux_loss_coef", 0.001),
        same_value("moe_norm_min", "moe.router.smallest_sum", 1e-12),
        replace(
            SHARED_EXPERTS,
            hf="moe_num_shared_experts",
            default=lambda config: 2 * read_int(config, "moe_intermediate_size", 1536),
        ),
    ),
    pattern=Pattern(_read_layers, _write_layers, keys=_LAYER_KEYS),
    defaults={"num_key_value_heads": 4, "rms_norm_eps": 1e-5, "tie_word_embeddings": True},
    checked=(
        only("moe_gate", "topk", because="experts are the best of all"),
        only("moe_use_aux_free", True, because="a bias corrects the choice of experts"),
        only("use_bias", False, because="projections have no biases here"),
        only("use_rmsnorm", True, because="norms are RMSNorm"),
    ),
    irrelevant={
        "moe_capacity": "transformers drops no tokens",
        "num_nextn_predict_layers": "multi-token prediction, which transformers does not read",
    },
    constants={
        "model.rotary_interleaved": True,
        "moe.router.name": "biased_softmax",
        "moe.expert_bias": True,
    },
    hf_constants={"hidden_act": "silu", "use_bias": False},
    carried=(r"model\.mtp_.*",),
    rope_base=500000.0,
)

register_family(ERNIE4_5_MOE)
