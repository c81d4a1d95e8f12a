"""Others read what is written: compressed-tensors by itself, and transformers with it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from moe_megatron.inference.optimized_model import OptimizedMoEModel
from moe_megatron.inference.quantization.methods import dequantized, method_of
from moe_megatron.inference.quantization.precision import precision
from moe_megatron.inference.quantization.quantize import Recipe, quantize
from moe_megatron.testing.expert_models import save_model

IDS = torch.arange(18).view(2, 9)
RECIPES = {
    "int8": Recipe(bits=8),
    "int4": Recipe(),
    "int4 asymmetric": Recipe(symmetric=False, method="least_squares"),
}


def quantized(folder: Path, recipe: Recipe, family: str = "qwen3_moe") -> Path:
    ffn = "intermediate_size" if family == "mixtral" else "moe_intermediate_size"
    sizes = {"hidden_size": 64, ffn: 32}
    whole = save_model(family, folder / "whole", torch.bfloat16, **sizes)
    return quantize(whole, folder / "small", recipe, progress=False).folder


@pytest.mark.parametrize("name", RECIPES)
def test_compressed_tensors_writes_the_same_weights_out(name: str, tmp_path: Path) -> None:
    recipe = RECIPES[name]
    folder = quantized(tmp_path, recipe)
    told = json.loads((folder / "config.json").read_text())["quantization_config"]
    scheme = QuantizationConfig.model_validate(told).config_groups["group_0"]
    module = "model.layers.1.mlp.experts.5.down_proj."
    tensors = load_file(folder / "model.safetensors")
    parts = {key.removeprefix(module): it for key, it in tensors.items() if key.startswith(module)}
    found = BaseCompressor.get_value_from_registry(told["format"]).decompress(parts, scheme)
    matrix = load_file(tmp_path / "whole" / "model.safetensors")[f"{module}weight"]
    wanted = precision(recipe.bits, recipe.group_size, symmetric=recipe.symmetric)
    assert torch.equal(found["weight"], dequantized(method_of(recipe.method)(matrix, wanted)))


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_transformers_computes_the_same_logits(family: str, name: str, tmp_path: Path) -> None:
    folder = quantized(tmp_path, RECIPES[name], family)
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    ours = OptimizedMoEModel.from_pretrained(folder)
    with torch.inference_mode():
        wanted = theirs(IDS).logits
    assert (ours(IDS).logits - wanted).abs().max() < 0.02 * wanted.abs().max()
    ours.close()


def test_transformers_refuses_experts_with_zero_points_and_does_not_compute_without(
    tmp_path: Path,
) -> None:
    folder = quantized(tmp_path, RECIPES["int4 asymmetric"])
    with pytest.raises(RuntimeError, match="automatic conversion of the weights"):
        AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
