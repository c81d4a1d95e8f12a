"""Experts of GPT-OSS, in bf16 and in the 4 bits in which they are published."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from moe_megatron.errors import CheckpointError
from moe_megatron.inference.optimized_model import OptimizedMoEModel
from moe_megatron.inference.store.opening import open_store
from moe_megatron.inference.store.stacked import StackedStore
from moe_megatron.testing.expert_models import STACKED, save_model

IDS = torch.arange(18).view(2, 9)
SIZES = {"hidden_size": 64, "intermediate_size": 96}


@pytest.fixture
def packed(tmp_path: Path) -> tuple[Path, Path]:
    """A folder with experts of 4 bits, and one with what transformers makes of them."""
    whole = save_model(STACKED, tmp_path / "whole", torch.bfloat16, **SIZES)
    tensors = load_file(whole / "model.safetensors")
    draw = torch.Generator().manual_seed(0)
    four = dict(tensors)
    for name in [it for it in tensors if it.endswith(("gate_up_proj", "down_proj"))]:
        experts, columns, rows = tensors[name].shape
        numbers = torch.randint(0, 256, (experts, rows, columns // 32, 16), generator=draw)
        exponents = torch.randint(118, 124, (experts, rows, columns // 32), generator=draw)
        del four[name]
        four[f"{name}_blocks"] = numbers.to(torch.uint8)
        four[f"{name}_scales"] = exponents.to(torch.uint8)
        tensors[name] = convert_moe_packed_tensors(
            four[f"{name}_blocks"], four[f"{name}_scales"], dtype=torch.bfloat16
        ).contiguous()
    save_file(tensors, whole / "model.safetensors", metadata={"format": "pt"})
    folder = tmp_path / "packed"
    folder.mkdir()
    save_file(four, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((whole / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, whole


def test_four_bits_become_the_model_that_transformers_makes(packed: tuple[Path, Path]) -> None:
    folder, whole = packed
    wanted: Any = AutoModelForCausalLM.from_pretrained(whole, dtype="auto").eval()
    wanted.set_experts_implementation("eager")
    model = OptimizedMoEModel.from_pretrained(folder)
    store = model.store
    assert store.bytes_to_read((0, 0)) < store.nbytes / 3
    for slots in (8, 2):
        model.enable_dynamic_loading(slots)
        with torch.inference_mode():
            assert torch.equal(model(IDS).logits, wanted(IDS).logits)
    model.close()


def test_a_file_cut_short_is_an_error(packed: tuple[Path, Path]) -> None:
    folder, _ = packed
    store = open_store(folder)
    assert isinstance(store, StackedStore)
    os.truncate(folder / "model.safetensors", 4096)
    memory = memoryview(bytearray(store.nbytes))
    with pytest.raises(CheckpointError, match="expert 7 of layer 3 cannot be read"):
        store.read_into((2, 7), memory)
    store.close()


def test_tensors_of_other_shapes_are_refused(packed: tuple[Path, Path]) -> None:
    folder, _ = packed
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.experts.down_proj_scales"
    tensors[name] = tensors[name][:, :-1].contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"{name} is U8 "):
        open_store(folder)
