"""What a packed folder says of itself: `quantization_config` of its `config.json`.

A folder with one precision for all experts and nothing kept apart is `pack-quantized` as
llm-compressor writes it, which transformers and vLLM load. They take one precision for all experts
of a model and know no outliers, and would compute something else without a word: folders with
either have a format of our own, which they refuse.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from moe_megatron.inference.quantization.precision import Precision

KEY = "quantization_config"
METHOD, FORMAT = "compressed-tensors", "pack-quantized"
OWN_FORMAT = "moe-megatron"


def quantization_config(
    precisions: Sequence[Precision], ignore: Sequence[str], *, outliers: bool, method: str
) -> dict[str, Any]:
    """The entry.

    Args:
        precisions: Those that occur.
        ignore: Modules that were not quantized.
        outliers: Whether some weights are kept apart.
        method: How weights were rounded, for people.
    """
    groups = {
        f"group_{number}": {
            "targets": ["Linear"],
            "weights": _weights(it),
            "input_activations": None,
            "output_activations": None,
        }
        for number, it in enumerate(precisions)
    }
    standard = len(precisions) == 1 and not outliers
    return {
        "config_groups": groups,
        "format": FORMAT if standard else OWN_FORMAT,
        "ignore": list(ignore),
        "kv_cache_scheme": None,
        "quant_method": METHOD,
        "quantization_status": "compressed",
        "moe_megatron": {"method": method, "outliers": outliers},
    }


def is_packed(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` says that its weights are packed as here."""
    told = config.get(KEY)
    return (
        isinstance(told, Mapping)
        and told.get("quant_method") == METHOD
        and told.get("format") in (FORMAT, OWN_FORMAT)
    )


def _weights(precision: Precision) -> dict[str, Any]:
    return {
        "num_bits": precision.bits,
        "type": "int",
        "symmetric": precision.symmetric,
        "strategy": "group" if precision.group_size else "channel",
        "group_size": precision.group_size,
        "dynamic": False,
        "observer": "minmax",
    }
