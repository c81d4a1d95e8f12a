"""An expert that is read is the one that transformers would load, and takes one read."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from moe_megatron.checkpoint.formats import dtypes
from moe_megatron.errors import CheckpointError
from moe_megatron.inference.store.hugging_face import HuggingFaceStore
from moe_megatron.testing.expert_models import FAMILIES, save_model


def read(store: HuggingFaceStore, key: tuple[int, int]) -> torch.Tensor:
    memory = torch.zeros(store.nbytes, dtype=torch.uint8)
    store.read_into(key, memoryview(memory.numpy()))
    return memory.view(dtypes.to_torch(store.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_expert_is_that_of_transformers(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    save_model(family, tmp_path, dtype)
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    store = HuggingFaceStore(tmp_path)
    assert store.reads_of_an_expert == 1
    found = {
        (int(name.split(".")[2]), expert): torch.cat(
            [module.gate_up_proj[expert].flatten(), module.down_proj[expert].flatten()]
        )
        for name, module in model.named_modules()
        if isinstance(getattr(module, "gate_up_proj", None), torch.nn.Parameter)
        for expert in range(module.num_experts)
    }
    assert found.keys() == store.keys
    for key, numbers in found.items():
        assert torch.equal(read(store, key), numbers.detach())
    store.close()


def test_a_file_that_became_shorter_is_named(tmp_path: Path) -> None:
    save_model("olmoe", tmp_path)
    store = HuggingFaceStore(tmp_path)
    file = tmp_path / "model.safetensors"
    os.truncate(file, file.stat().st_size // 4)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: expert 7 of layer 3 cannot be"):
        read(store, (2, 7))


def test_a_dense_model_is_refused(tmp_path: Path) -> None:
    save_model("llama", tmp_path)
    with pytest.raises(CheckpointError, match="a model without experts"):
        HuggingFaceStore(tmp_path)


def test_experts_that_are_kept_in_another_order_are_refused(tmp_path: Path) -> None:
    save_model("gpt_oss", tmp_path)
    with pytest.raises(
        CheckpointError, match="cannot be packed; OptimizedMoEModel reads those of GPT-OSS"
    ):
        HuggingFaceStore(tmp_path)
