"""Quantised weights are refused by the name of their method, with what to do."""

from pathlib import Path
from typing import Any

import pytest

from moe_megatron.checkpoint.formats.quantized import refuse_quantized
from moe_megatron.errors import CheckpointError

WEIGHT = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    ("told", "names", "method"),
    [
        ({"quant_method": "awq", "bits": 4}, [], "AWQ"),
        ({"quant_method": "gptq"}, [], "GPTQ"),
        ({"quant_method": "compressed-tensors"}, [], "compressed-tensors"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, [], "bitsandbytes"),
        ({"quant_method": "fp8", "weight_block_size": None}, [], "FP8 with one factor a tensor"),
        ({"quant_method": "fbgemm_fp8"}, [], "FBGEMM FP8"),
        ({"quant_method": "of tomorrow"}, [], "'of tomorrow'"),
        ({"load_in_8bit": True}, [], "None"),
        (None, [f"{WEIGHT}.qweight", f"{WEIGHT}.scales"], "GPTQ or AWQ"),
        (None, [f"{WEIGHT}.weight_packed"], "compressed-tensors"),
        (None, [f"{WEIGHT}.weight", f"{WEIGHT}.weight_scale"], "FP8 with one factor a tensor"),
        (None, [f"{WEIGHT}.weight", f"{WEIGHT}.SCB"], "bitsandbytes"),
    ],
)
def test_method_is_named(told: dict[str, Any] | None, names: list[str], method: str) -> None:
    config = {} if told is None else {"quantization_config": told}
    with pytest.raises(CheckpointError, match=rf"quantised by .*{method}.* before the quantis"):
        refuse_quantized(Path("model"), config, names)


@pytest.mark.parametrize("method", [None, "fp8", "mxfp4"])
def test_what_importing_reads_is_left_to_it(method: str | None) -> None:
    config = {"quantization_config": method and {"quant_method": method}}
    refuse_quantized(Path("model"), config, [f"{WEIGHT}.weight", f"{WEIGHT}.weight_scale_inv"])
