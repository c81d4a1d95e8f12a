"""DeepSeek-V3.2: DeepSeek-V3 with sparse attention, whose indexer chooses the tokens to attend to.

It only converts: the indexer is kept as it is under `hugging_face.`, all else has Megatron's names.
"""

from dataclasses import replace
from typing import Any

from moe_megatron.families.deepseek_v3 import DEEPSEEK_V3
from moe_megatron.families.family import Names
from moe_megatron.families.hf_config import HfConfig, read_int
from moe_megatron.families.latent import LATENT_CHECKED, LATENT_IRRELEVANT, mtp_layout
from moe_megatron.families.registry import register_family
from moe_megatron.families.rows import kept
from moe_megatron.families.settings import LISTED_OR_FIRST_DENSE

_INDEXER = "self_attn.indexer."
_KEPT = "this family is only converted, and config.json keeps it"

_ROWS = (
    kept(_INDEXER + "wq_b.weight", "index_rows", "q_lora"),
    kept(_INDEXER + "wk.weight", "index_width", "hidden"),
    kept(_INDEXER + "k_norm.weight", "index_width"),
    kept(_INDEXER + "k_norm.bias", "index_width"),
    kept(_INDEXER + "weights_proj.weight", "index_heads", "hidden"),
)


def _layout(config: HfConfig, names: Names) -> dict[str, Any]:
    heads, width = read_int(config, "index_n_heads", 64), read_int(config, "index_head_dim", 128)
    sizes = {"index_heads": heads, "index_width": width, "index_rows": heads * width}
    return {**mtp_layout(config, names), "beyond": sizes}


DEEPSEEK_V32 = replace(
    DEEPSEEK_V3,
    name="deepseek_v32",
    architecture="DeepseekV32ForCausalLM",
    rows=(*DEEPSEEK_V3.rows, *_ROWS),
    pattern=LISTED_OR_FIRST_DENSE,
    layout=_layout,
    defaults={
        **{"first_k_dense_replace": 3, "n_group": 8, "n_shared_experts": 1, "topk_group": 4},
        **{"num_experts_per_tok": 8, "q_lora_rank": 1536, "routed_scaling_factor": 2.5},
    },
    reads=("index_n_heads", "index_head_dim"),
    checked=LATENT_CHECKED,
    irrelevant={
        **LATENT_IRRELEVANT,
        **dict.fromkeys(("index_topk", "layer_types", "norm_topk_prob", "rope_interleave"), _KEPT),
        **dict.fromkeys(("scoring_func", "topk_method", "aux_loss_alpha"), _KEPT),
    },
    untrained=(
        "its attention is sparse: an indexer chooses the tokens that are attended to, which the "
        "layers of this toolkit do not compute."
    ),
)

register_family(DEEPSEEK_V32)
