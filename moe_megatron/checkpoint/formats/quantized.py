"""Names quantised weights that no conversion reads, and says what to do about them.

Block-scaled 8-bit weights (DeepSeek) and MXFP4 are not its business: importing reads them, or says
why not.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from moe_megatron.errors import CheckpointError
from moe_megatron.families.hf_config import shown

READ = frozenset({"fp8", "mxfp4"})
"""Methods whose tensors importing understands, or refuses with a reason of its own."""

_METHODS = {
    "awq": "AWQ",
    "gptq": "GPTQ",
    "compressed-tensors": "compressed-tensors",
    "bitsandbytes": "bitsandbytes",
    "fbgemm_fp8": "FBGEMM FP8",
    "hqq": "HQQ",
    "quanto": "Quanto",
    "torchao": "torchao",
    "aqlm": "AQLM",
    "modelopt": "NVIDIA ModelOpt",
    "exl2": "ExLlamaV2",
    "exl3": "ExLlamaV3",
}
_SIGNS = {
    ".qzeros": "GPTQ or AWQ",
    ".qweight": "GPTQ or AWQ",
    ".g_idx": "GPTQ",
    ".weight_packed": "compressed-tensors",
    ".weight_scale": "compressed-tensors or FP8 with one factor a tensor",
    ".absmax": "bitsandbytes",
    ".quant_map": "bitsandbytes",
    ".SCB": "bitsandbytes",
}
"""Ends of names that only tensors of quantised models have, the first found decides."""


def refuse_quantized(folder: Path, config: Mapping[str, Any], names: Collection[str]) -> None:
    """Refuse weights that are quantised in a way that importing cannot read.

    Args:
        folder: The model folder, for the message.
        config: Its `config.json`.
        names: Names of its tensors.

    Raises:
        CheckpointError: They are; the message names the method.
    """
    told = config.get("quantization_config")
    method = told.get("quant_method") if isinstance(told, Mapping) else None
    if told and method not in READ:
        raise _error(folder, _METHODS.get(str(method), shown(method)))
    # Where the key is missing, the blocks are those of DeepSeek, as transformers has it.
    if isinstance(told, Mapping) and told.get("weight_block_size", ()) is None:
        raise _error(folder, "FP8 with one factor a tensor (its weight_block_size is null)")
    for end, sign in _SIGNS.items():
        if any(name.endswith(end) for name in names):
            raise _error(folder, f"{sign} (it has tensors *{end})")


def _error(folder: Path, method: str) -> CheckpointError:
    return CheckpointError(
        f"{folder} holds weights quantised by {method}, which cannot be trained or converted bit "
        "by bit. Take the model from before the quantisation (often base_model on its page), or "
        "load it with transformers, call model.dequantize() and save that with save_pretrained. "
        "What can be read: bf16, fp16, fp32, and FP8 in blocks as DeepSeek has it."
    )
