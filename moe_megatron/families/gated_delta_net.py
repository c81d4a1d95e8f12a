"""Layers of linear attention (a gated delta net) among layers of gated attention, as Qwen has them.

Megatron's names for them depend on kernels that need CUDA, so both kinds are kept as they are: a
tensor of layer 3 has the key `hugging_face.layers.3.linear_attn.A_log`.
"""

from collections.abc import Iterable
from typing import Any

from moe_megatron.errors import MappingError
from moe_megatron.families.family import Names
from moe_megatron.families.hf_config import HfConfig, read_int, read_list, shown
from moe_megatron.families.rows import kept
from moe_megatron.families.table import Row

LINEAR, FULL = "linear_attention", "full_attention"
SIZES = {
    **{"linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_value_head_dim": 128},
    **{"linear_num_key_heads": 16, "linear_num_value_heads": 32},
}
"""Keys of the sizes of linear attention, and what their absence means."""
KEYS = (*SIZES, "layer_types", "full_attention_interval")
"""All keys of `config.json` that this module reads."""
WHY_UNTRAINED = (
    "most of its layers have linear attention (a gated delta net), which the layers of this "
    "toolkit do not compute."
)

GATED_ATTENTION = (
    kept("self_attn.q_proj.weight", "gated_q_rows", "hidden", kind=FULL),
    *(kept(f"self_attn.{x}_proj.weight", "kv_rows", "hidden", kind=FULL) for x in "kv"),
    kept("self_attn.o_proj.weight", "hidden", "q_rows", kind=FULL),
    kept("self_attn.q_proj.bias", "gated_q_rows", kind=FULL, when="qkv_bias"),
    *(kept(f"self_attn.{x}_proj.bias", "kv_rows", kind=FULL, when="qkv_bias") for x in "kv"),
    kept("self_attn.o_proj.bias", "hidden", kind=FULL, when="proj_bias"),
    *(kept(f"self_attn.{x}_norm.weight", "head_dim", kind=FULL) for x in "qk"),
)
"""Attention whose query projection also gives each head a gate."""


def linear_attention(projections: Iterable[tuple[str, str]]) -> tuple[Row, ...]:
    """A gated delta net.

    Args:
        projections: Names of the projections of its input, and their rows.
    """
    return (
        *(
            kept(f"linear_attn.{name}.weight", rows, "hidden", kind=LINEAR)
            for name, rows in projections
        ),
        kept("linear_attn.conv1d.weight", "conv_rows", 1, "conv_width", kind=LINEAR),
        kept("linear_attn.A_log", "value_heads", kind=LINEAR),
        kept("linear_attn.dt_bias", "value_heads", kind=LINEAR),
        kept("linear_attn.norm.weight", "value_width", kind=LINEAR),
        kept("linear_attn.out_proj.weight", "hidden", "value_rows", kind=LINEAR),
    )


def layout(config: HfConfig, names: Names) -> dict[str, Any]:
    """The kind of each layer, and the sizes of linear attention."""
    width, keys, values, key_heads, value_heads = (read_int(config, k, v) for k, v in SIZES.items())
    key_rows, value_rows = keys * key_heads, values * value_heads
    heads, head_dim = read_int(config, "num_attention_heads"), read_int(config, "head_dim")
    return {
        "layer_kinds": _kinds(config),
        "beyond": {
            "conv_width": width,
            "conv_rows": 2 * key_rows + value_rows,
            "qkvz_rows": 2 * (key_rows + value_rows),
            "value_rows": value_rows,
            "value_heads": value_heads,
            "two_value_heads": 2 * value_heads,
            "value_width": values,
            "gated_q_rows": 2 * heads * head_dim,
        },
    }


def _kinds(config: HfConfig) -> tuple[str, ...]:
    layers, kinds = read_int(config, "num_hidden_layers"), read_list(config, "layer_types")
    if not kinds:
        step = max(1, read_int(config, "full_attention_interval", 4))
        return tuple(LINEAR if (layer + 1) % step else FULL for layer in range(layers))
    if len(kinds) != layers or any(kind not in (LINEAR, FULL) for kind in kinds):
        raise MappingError(
            f"config.json gives layer_types as {shown(list(kinds))}; each of the {layers} layers "
            f"needs {LINEAR} or {FULL}."
        )
    return tuple(kinds)
