"""A model with packed experts computes what its weights, written out, compute in transformers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from moe_megatron.caching import ExpertCache
from moe_megatron.checkpoint.formats.hf_folder import HfFolder
from moe_megatron.checkpoint.integrity.check import check_folder
from moe_megatron.errors import CheckpointError, ConfigError
from moe_megatron.inference.optimized_model import OptimizedMoEModel
from moe_megatron.inference.quantization import kernels
from moe_megatron.inference.quantization.audit import audit
from moe_megatron.inference.quantization.methods import dequantized, method_of
from moe_megatron.inference.quantization.precision import Precision
from moe_megatron.inference.quantization.quantize import Recipe, quantize
from moe_megatron.optimization import MoEOptimizer
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.testing.expert_models import FAMILIES, save_model

IDS = torch.arange(18).view(2, 9)
FOUR, EIGHT = Precision(4, 32), Precision(8)


def sizes(family: str) -> dict[str, int]:
    ffn = {"intermediate_size": 96} if family in ("mixtral", "olmoe") else {}
    return {"hidden_size": 64, "moe_intermediate_size": 32, **ffn}


def small(family: str, folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    return save_model(family, folder, dtype, **sizes(family))


def uses() -> RoutingProfile:
    profile = RoutingProfile.empty(layers=(1, 2, 3), num_experts=8, top_k=2)
    profile.tokens_per_expert[:] = np.arange(24).reshape(3, 8)
    profile.tokens = int(profile.tokens_per_expert.sum())
    return profile


RECIPES = {
    "int8": Recipe(bits=8),
    "int4": Recipe(),
    "mixed": Recipe(profile=uses(), hot_share=0.25),
    "sparse": Recipe(method="dense_and_sparse"),
    "zeros": Recipe(symmetric=False),
    "zeros mixed": Recipe(symmetric=False, profile=uses(), hot_share=0.25),
}


def reference(folder: Path, recipe: Recipe) -> Any:
    """Transformers' model, of which each projection's weights are rounded and written out."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    model.set_experts_implementation("eager")
    method, four = method_of(recipe.method), replace(FOUR, symmetric=recipe.symmetric)
    for module in model.modules():
        if not isinstance(getattr(module, "gate_up_proj", None), torch.nn.Parameter):
            continue
        for expert in range(module.num_experts):
            hot = recipe.bits == 8 or (recipe.profile is not None and expert >= 6)
            for matrix in (
                *module.gate_up_proj.data[expert].chunk(2),
                module.down_proj.data[expert],
            ):
                matrix.copy_(dequantized(method(matrix.contiguous(), EIGHT if hot else four)))
    return model


def cases() -> list[Any]:
    every = [(family, name) for family in FAMILIES for name in ("int4",)]
    others = [("olmoe", "int8"), ("olmoe", "mixed"), ("qwen3_moe", "sparse")]
    return [*every, *others, ("olmoe", "zeros"), ("qwen3_moe", "zeros mixed")]


@pytest.mark.parametrize(("family", "name"), cases())
def test_logits_are_those_of_the_weights_written_out(
    family: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = RECIPES[name]
    made = quantize(small(family, tmp_path / "whole"), tmp_path / "small", recipe, progress=False)
    assert check_folder(made.folder).problems == ()
    with torch.inference_mode():
        wanted = reference(tmp_path / "whole", recipe)(IDS).logits
    model = OptimizedMoEModel.from_pretrained(made.folder)
    by_kernels = model(IDS).logits
    assert (by_kernels - wanted).abs().max() < 0.02 * wanted.abs().max()
    monkeypatch.setattr(kernels, "FEW_ROWS", 0)
    monkeypatch.setattr(kernels, "MANY", 0)
    written_out = model(IDS).logits
    if recipe.symmetric:
        assert torch.equal(written_out, wanted)
    else:  # torch's product has zeros in the type of the scales, which rounds them
        assert (written_out - wanted).abs().max() < 0.01 * wanted.abs().max()
    slots = 2 * len(model.store.layers)  # as few as can be: everything is read again and again
    model.set_expert_cache(ExpertCache((slots + 0.5) * model.store.nbytes / 1e9))
    assert torch.equal(model(IDS).logits, written_out)
    model.close()


def test_all_but_the_experts_is_copied_byte_by_byte(tmp_path: Path) -> None:
    small("qwen2_moe", tmp_path / "whole")
    made = quantize(tmp_path / "whole", tmp_path / "small", RECIPES["int4"], progress=False)
    before, after = HfFolder(tmp_path / "whole"), HfFolder(made.folder, quantized=True)
    others = {name for name in before.tensors if ".experts." not in name}
    assert others == {name for name in after.tensors if ".experts." not in name}
    assert any("shared_expert" in name for name in others)

    def content(folder: HfFolder, name: str) -> bytes:
        tensor = folder.tensors[name]
        data = (folder.path / tensor.file).read_bytes()
        return data[tensor.offset : tensor.offset + tensor.nbytes]

    assert all(content(before, name) == content(after, name) for name in others)
    told = after.config["quantization_config"]
    assert (told["quant_method"], told["format"]) == ("compressed-tensors", "pack-quantized")
    assert "model.layers.0.mlp.gate" in told["ignore"]
    assert "lm_head" in told["ignore"]
    assert made.audit.experts == {"int4 g32": 24}
    assert made.audit.routers == {"BF16": 3}
    packed = [it for name, it in after.tensors.items() if ".experts." in name]
    assert made.sizes.experts_after == sum(it.nbytes for it in packed)
    assert made.sizes.experts_after < 0.35 * made.sizes.experts_before


@pytest.mark.parametrize("name", ["mixed", "sparse"])
def test_what_others_would_compute_wrongly_has_a_format_that_they_refuse(
    name: str, tmp_path: Path
) -> None:
    small("olmoe", tmp_path / "whole")
    made = quantize(tmp_path / "whole", tmp_path / "small", RECIPES[name], progress=False)
    config = json.loads((made.folder / "config.json").read_text())
    assert config["quantization_config"]["format"] == "moe-megatron"
    if name == "mixed":
        assert made.audit.experts == {"int4 g32": 18, "int8": 6}


def test_experts_that_transformers_fused_are_written_one_by_one(tmp_path: Path) -> None:
    small("mixtral", tmp_path / "whole")
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype="auto")
    from safetensors.torch import save_file

    (tmp_path / "fused").mkdir()
    save_file(model.state_dict(), tmp_path / "fused" / "model.safetensors")
    (tmp_path / "fused" / "config.json").write_bytes(
        (tmp_path / "whole" / "config.json").read_bytes()
    )
    for name in ("whole", "fused"):
        quantize(tmp_path / name, tmp_path / f"{name}4", RECIPES["int4"], progress=False)
    names = [set(HfFolder(tmp_path / it, quantized=True).tensors) for it in ("whole4", "fused4")]
    assert names[0] == names[1]


def test_an_expert_that_stayed_as_it_was_is_found(tmp_path: Path) -> None:
    small("olmoe", tmp_path / "whole")
    made = quantize(tmp_path / "whole", tmp_path / "small", RECIPES["int8"], progress=False)
    file = made.folder / "model.safetensors"
    name = "model.layers.1.mlp.experts.5.up_proj.weight"
    data = file.read_bytes()
    file.write_bytes(data.replace(f"{name}_packed".encode(), f"{name}_forgot".encode()))
    with pytest.raises(CheckpointError, match=r"experts\.5\.up_proj has no weight_packed"):
        audit(made.folder)


def test_a_router_that_was_rounded_is_found(tmp_path: Path) -> None:
    small("olmoe", tmp_path / "whole")
    made = quantize(tmp_path / "whole", tmp_path / "small", RECIPES["int8"], progress=False)
    file = made.folder / "model.safetensors"
    data = file.read_bytes()
    router = b'"model.layers.1.mlp.gate.weight":{"dtype":"BF16"'
    assert router in data
    file.write_bytes(data.replace(router, router.replace(b'"BF16"', b'"I16" ')))
    with pytest.raises(
        CheckpointError, match=r"the router model\.layers\.1\.mlp\.gate\.weight is I16"
    ):
        audit(made.folder)


def test_python_opens_what_it_wrote(tmp_path: Path) -> None:
    small("olmoe", tmp_path / "whole")
    model = MoEOptimizer().quantize(tmp_path / "whole", bits=8)
    assert model.store.path == tmp_path / "whole-8bit"
    assert model(IDS).logits.isfinite().all()
    model.close()
    zeros = MoEOptimizer().quantize(tmp_path / "whole", symmetric=False)
    assert zeros.store.path == tmp_path / "whole-4bit"
    assert audit(zeros.store.path).experts == {"int4 g32 asymmetric": 24}
    zeros.close()
    with pytest.raises(ConfigError, match=r"quantize_router \(True\) is not supported"):
        MoEOptimizer().quantize(tmp_path / "whole", quantize_router=True)


def test_some_of_the_packed_experts_are_those_of_the_whole(tmp_path: Path) -> None:
    small("olmoe", tmp_path / "whole")
    made = quantize(tmp_path / "whole", tmp_path / "small", RECIPES["int4"], progress=False)
    of = {"num_experts_to_load": 3, "profile": uses()}
    some = OptimizedMoEModel.from_pretrained(made.folder, "frequency_based", **of)
    assert len(some.store.keys) == 9
    every = OptimizedMoEModel.from_pretrained(made.folder)
    assert some.store.nbytes == every.store.nbytes
    cache, others = some.get_expert_cache(), every.get_expert_cache()
    ((_, (kept, _)),) = cache.matrices(0, [2])
    ((_, (same, _)),) = others.matrices(0, [7])
    assert torch.equal(kept.dequantized(), same.dequantized())
    some.close()
    every.close()


def test_what_cannot_be_quantized_is_refused(tmp_path: Path) -> None:
    small("olmoe", tmp_path / "whole")
    target = tmp_path / "small"
    with pytest.raises(ConfigError, match=r"method \('awq'\) must be rtn"):
        quantize(tmp_path / "whole", target, Recipe(method="awq"), progress=False)
    with pytest.raises(ConfigError, match="take bits 4 with a profile"):
        quantize(tmp_path / "whole", target, Recipe(bits=8, profile=uses()), progress=False)
    for layers, experts, top_k in (((1, 2), 8, 2), ((2, 3, 4), 8, 2), ((1, 2, 3), 8, 4)):
        other = RoutingProfile.empty(layers=layers, num_experts=experts, top_k=top_k)
        with pytest.raises(ConfigError, match=r"has 3 layers of 8 experts \(layers 1 to 3; 2 for"):
            quantize(tmp_path / "whole", target, Recipe(profile=other), progress=False)
    with pytest.raises(CheckpointError, match="is the source; choose another folder"):
        quantize(tmp_path / "whole", tmp_path / "whole", Recipe(), progress=False)
    assert not target.exists()
    quantize(tmp_path / "whole", target, Recipe(), progress=False)
    with pytest.raises(CheckpointError, match="has been quantized already"):
        quantize(target, tmp_path / "twice", Recipe(), progress=False)
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        quantize(tmp_path / "whole", target, Recipe(), progress=False)
    assert sorted(it.name for it in tmp_path.iterdir()) == ["small", "whole"]


def test_a_packed_file_that_was_cut_short_is_named(tmp_path: Path) -> None:
    small("olmoe", tmp_path / "whole")
    made = quantize(tmp_path / "whole", tmp_path / "small", Recipe(), progress=False)
    model = OptimizedMoEModel.from_pretrained(made.folder)
    file = made.folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:4096])
    with pytest.raises(CheckpointError, match="cannot be read: the file ends before it"):
        model(IDS)
    model.close()
