"""The command by which vLLM serves a folder, and what of the folder it may not like.

Production serving is vLLM's job. It is not installed beside this package, whose torch is another
one, so the folder is judged by its files. It loads no torch.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_megatron.config.checks import join_words
from moe_megatron.errors import CheckpointError
from moe_megatron.reading import read_json

_CONFIG, _ADAPTER = "config.json", "adapter_config.json"
_KNOWN = frozenset(
    f"{name}ForCausalLM"
    for name in (
        "Llama", "Mistral", "Mixtral", "Olmoe", "Qwen2", "Qwen2Moe", "Qwen3", "Qwen3Moe",
        "DeepseekV2", "DeepseekV3", "GptOss", "GraniteMoe", "PhiMoE", "MiniMaxM2", "Glm4Moe",
        "Ernie4_5_Moe",
    )
)  # fmt: skip
"""Architectures that vLLM has a model of its own for, as of 0.33."""
_QUANTIZED = frozenset({"gptq", "awq", "compressed-tensors", "modelopt", "fp8", "mxfp4"})


@dataclass(frozen=True, slots=True)
class VllmCommand:
    """A command, and remarks about the folder."""

    words: tuple[str, ...]
    remarks: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(self.words)


def vllm_command(
    folder: Path,
    *,
    name: str,
    host: str,
    port: int,
    context: int | None = None,
    adapters: Mapping[str, Path] | None = None,
) -> VllmCommand:
    """How vLLM would serve a folder as this server does.

    Args:
        folder: A Hugging Face folder.
        name: Under which clients ask for the model.
        host: Address of the interface.
        port: Its port.
        context: Most tokens of a request; None: what the model was made for.
        adapters: Folders in PEFT's format by name.

    Raises:
        CheckpointError: There is no configuration, or it cannot be read.
    """
    config = _object(folder / _CONFIG)
    words = ["vllm", "serve", str(folder.resolve()), "--served-model-name", name]
    words += ["--host", host, "--port", str(port)]
    if context is not None:
        words += ["--max-model-len", str(context)]
    remarks = _about(folder, config)
    if adapters:
        words += ["--enable-lora", "--lora-modules"]
        words += [f"{it}={path.resolve()}" for it, path in adapters.items()]
        found = {it: _object(path / _ADAPTER) for it, path in adapters.items()}
        words += ["--max-lora-rank", str(max(_rank(it) for it in found.values()))]
        remarks += [
            f"the adapter {it} changes parameters of experts ({_PARAMETERS}), which vLLM may not "
            "load; merge it with `moe-megatron adapter merge` then."
            for it, about in found.items()
            if about.get(_PARAMETERS)
        ]
    return VllmCommand(tuple(words), tuple(remarks))


_PARAMETERS = "target_parameters"


def _about(folder: Path, config: Mapping[str, Any]) -> list[str]:
    remarks = []
    architectures = config.get("architectures")
    known = architectures if isinstance(architectures, list) else []
    if not _KNOWN.intersection(map(str, known)):
        said = join_words(known, "and") or "none"
        remarks.append(
            f"its architecture ({said}) is not among those that vLLM is known to have a model for; "
            "it may fall back to transformers' (--model-impl transformers)."
        )
    if not list(folder.glob("*.safetensors")):
        remarks.append("it holds no .safetensors.")
    if not (folder / "tokenizer.json").is_file():
        remarks.append("it holds no tokenizer.json; name a tokenizer with --tokenizer.")
    if config.get("dtype", config.get("torch_dtype")) == "float32":
        remarks.append("it is in float32: --dtype bfloat16 takes half the memory.")
    quantized = config.get("quantization_config")
    if isinstance(quantized, dict) and quantized.get("quant_method") not in _QUANTIZED:
        method = quantized.get("quant_method")
        remarks.append(f"its quantization ({method!r:.40}) is not one that vLLM is known to read.")
    elif isinstance(quantized, dict):
        remarks += _about_experts(quantized)
    return remarks


def _about_experts(quantized: Mapping[str, Any]) -> list[str]:
    """Of what `moe-megatron quantize` writes, what vLLM does not read."""
    if quantized.get("format") == "moe-megatron":
        return [
            "its experts differ in bits, or have outliers, and vLLM refuses that format; quantize "
            "without a profile, by rtn or least_squares."
        ]
    groups = quantized.get("config_groups")
    weights = [it.get("weights") for it in groups.values()] if isinstance(groups, dict) else []
    if any(isinstance(it, dict) and it.get("symmetric") is False for it in weights):
        return [
            "its experts have zero points, which vLLM 0.22 and those before refuse; quantize "
            "without --asymmetric for them."
        ]
    return []


def _rank(config: Mapping[str, Any]) -> int:
    """The largest rank of an adapter, as vLLM counts: a power of two, at least 8."""
    pattern = config.get("rank_pattern") or {}
    ranks = [config.get("r"), *(pattern.values() if isinstance(pattern, dict) else ())]
    most = max((it for it in ranks if isinstance(it, int)), default=8)
    return max(8, 1 << (most - 1).bit_length())


def _object(file: Path) -> dict[str, Any]:
    try:
        found = read_json(file)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} cannot be read ({error}); give a Hugging Face folder, and adapters in PEFT's "
            "format."
        ) from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} is not a JSON object; copy the folder again.")
    return found
