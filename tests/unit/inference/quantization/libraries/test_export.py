"""What libraries were seen to do to experts without a word, made by hand: each is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from moe_megatron.errors import CheckpointError
from moe_megatron.inference.quantization.libraries.export import audit_export, role_of
from moe_megatron.inference.quantization.libraries.layouts import (
    GPTQ,
    MODELOPT_FP8,
    PACK_QUANTIZED,
)
from moe_megatron.testing.expert_models import save_model

Tensors = dict[str, torch.Tensor]
ROUTER = "model.layers.1.block_sparse_moe.gate.weight"


def as_gptq(rows: int, columns: int) -> Tensors:
    return {
        ".qweight": torch.zeros(columns // 8, rows, dtype=torch.int32),
        ".scales": torch.ones(columns // 32, rows, dtype=torch.float16),
        ".qzeros": torch.zeros(columns // 32, rows // 8, dtype=torch.int32),
        ".g_idx": torch.zeros(columns, dtype=torch.int32),
    }


def as_packed(rows: int, columns: int) -> Tensors:
    return {
        ".weight_packed": torch.zeros(rows, columns // 8, dtype=torch.int32),
        ".weight_scale": torch.ones(rows, columns // 32, dtype=torch.bfloat16),
    }


def as_bytes(rows: int, columns: int) -> Tensors:
    return {
        ".weight": torch.zeros(rows, columns // 2, dtype=torch.uint8),
        ".weight_scale": torch.zeros(rows, columns // 16).to(torch.float8_e4m3fn),
        ".weight_scale_2": torch.ones(()),
    }


class Made:
    """A model, and what a library makes of it."""

    def __init__(self, place: Path, family: str = "mixtral") -> None:
        sizes = {"hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32}
        self.source = save_model(family, place / "model", torch.bfloat16, **sizes)
        self.folder = place / "made"
        self.tensors = load_file(self.source / "model.safetensors")

    def write(
        self,
        numbers: Callable[[int, int], Tensors],
        method: str | None,
        change: Callable[[Tensors], Any] = lambda tensors: None,
    ) -> Path:
        made: Tensors = {}
        for name, tensor in self.tensors.items():
            module = name.removesuffix(".weight")
            parts = numbers(*tensor.shape) if role_of(module) else {".weight": tensor}
            made |= {module + end: it for end, it in parts.items()}
        change(made)
        self.folder.mkdir()
        save_file(made, self.folder / "model.safetensors")
        config = json.loads((self.source / "config.json").read_text())
        if method is not None:
            config["quantization_config"] = {"quant_method": method}
        (self.folder / "config.json").write_text(json.dumps(config))
        return self.folder


def test_experts_in_the_format_and_all_else_as_it_was_pass(tmp_path: Path) -> None:
    made = Made(tmp_path)

    def renamed(tensors: Tensors) -> None:  # as GPTQModel and llm-compressor call Mixtral's
        for name in [*tensors]:
            new = name.replace("block_sparse_moe", "mlp").replace(".w1.", ".gate_proj.")
            new = new.replace(".w2.", ".down_proj.").replace(".w3.", ".up_proj.")
            tensors[new] = tensors.pop(name)

    path = made.write(as_gptq, "gptq", renamed)
    found = audit_export(path, made.source, GPTQ, library="GPTQModel", bits=4, group_size=32)
    assert found.modules[0, 3, "up_proj"] == "model.layers.0.mlp.experts.3.up_proj"
    assert (found.audit.experts, found.audit.routers) == ({"I32": 24}, {"BF16": 3})


def bf16_expert(tensors: Tensors) -> None:
    module = "model.layers.1.block_sparse_moe.experts.2.w3"
    for name in [it for it in tensors if it.startswith(module)]:
        del tensors[name]
    tensors[f"{module}.weight"] = torch.zeros(96, 64, dtype=torch.bfloat16)


def all_fused(tensors: Tensors) -> None:
    for name in [it for it in tensors if ".experts." in it]:
        del tensors[name]
    for layer in range(3):
        tensors[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = torch.zeros(8, 192, 64)


def small_router(tensors: Tensors) -> None:
    tensors.pop(ROUTER)
    tensors[ROUTER.replace(".weight", ".qweight")] = torch.zeros(8, 8, dtype=torch.int32)


def other_router(tensors: Tensors) -> None:
    tensors[ROUTER] = tensors[ROUTER] * 2


def smoothed_norm(tensors: Tensors) -> None:
    name = "model.layers.0.post_attention_layernorm.weight"
    tensors[name] = tensors[name] * 1.5


def other_groups(tensors: Tensors) -> None:
    name = "model.layers.0.block_sparse_moe.experts.0.w1.weight_scale"
    tensors[name] = torch.ones(96, 1, dtype=torch.bfloat16)


def no_scales(tensors: Tensors) -> None:
    del tensors["model.layers.2.block_sparse_moe.experts.7.w2.weight_scale"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (bf16_expert, "left 1 of 72 matrices of experts as they were, .*experts.2.w3.weight"),
        (all_fused, "left 72 of 72 matrices .*experts.gate_up_proj"),
        (small_router, "left out 1 routers and 0 other tensors .*layers.1.block_sparse_moe.gate"),
        (other_router, r"changed 1 routers .*gate.weight \(BF16, now BF16\)"),
        (smoothed_norm, "changed 0 routers and 1 other .*layers.0.post_attention_layernorm"),
        (other_groups, r"experts.0.w1.weight_scale is BF16 \[96, 1\], not .* \[96, 2\]"),
        (no_scales, "experts.7.w2.weight_scale is missing"),
    ],
)
def test_a_trap_is_an_error_with_the_library_and_the_tensors(
    tmp_path: Path, change: Callable[[Tensors], None], said: str
) -> None:
    made = Made(tmp_path)
    path = made.write(as_packed, "compressed-tensors", change)
    with pytest.raises(CheckpointError, match=f"^thelib .*{said}"):
        audit_export(path, made.source, PACK_QUANTIZED, library="thelib", bits=4, group_size=32)


@pytest.mark.parametrize("method", [None, "gptq"])
def test_packed_weights_of_which_the_configuration_says_nothing_are_refused(
    tmp_path: Path, method: str | None
) -> None:
    made = Made(tmp_path, "qwen3_moe")
    path = made.write(as_bytes, method)
    with pytest.raises(CheckpointError, match=f"quant_method {method!r}, where modelopt is"):
        audit_export(path, made.source, MODELOPT_FP8, library="ModelOpt", bits=4, group_size=16)


def test_shared_experts_and_dense_layers_are_no_experts() -> None:
    assert role_of("model.layers.3.mlp.experts.11.gate_proj") == (3, 11, "gate_proj")
    assert role_of("model.layers.3.block_sparse_moe.experts.1.w2") == (3, 1, "down_proj")
    for other in ("mlp.shared_experts.gate_proj", "mlp.gate", "self_attn.q_proj"):
        assert role_of(f"model.layers.3.{other}") is None
