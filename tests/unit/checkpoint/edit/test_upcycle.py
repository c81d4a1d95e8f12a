"""Dense models that get experts: the same function, in a folder that transformers loads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from moe_megatron.checkpoint.convert import Execution, export_checkpoint, import_checkpoint
from moe_megatron.checkpoint.edit.selection import Selection
from moe_megatron.checkpoint.edit.upcycle import Upcycling
from moe_megatron.errors import CheckpointError, MappingError
from moe_megatron.testing.tiny_models import save

QUIET = Execution(progress=False)
TOKENS = torch.randint(0, 131, (2, 24), generator=torch.Generator().manual_seed(3))
Read = Callable[[Path], dict[str, Tensor]]


def upcycle(name: str, folder: Path, upcycling: Upcycling, **options: Any) -> tuple[Any, Path]:
    """The dense model, and the folder of the one with experts."""
    model = save(name, folder / "dense", fused=False)
    import_checkpoint(
        folder / "dense", folder / "megatron", upcycling=upcycling, execution=QUIET, **options
    )
    export_checkpoint(folder / "megatron", folder / "moe", execution=QUIET)
    return model, folder / "moe"


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        answer: Tensor = model(TOKENS).logits
    return answer


@pytest.mark.parametrize(
    ("name", "family", "options"),
    [
        ("llama", "mixtral", {}),
        ("mistral", "mixtral", {"num_experts": 3, "top_k": 3}),
        ("qwen2", "qwen2_moe", {}),
        ("qwen3", "qwen3_moe", {"num_experts": 16, "top_k": 4, "granularity": 2}),
        ("llama", "mixtral", {"num_experts": 6, "top_k": 6, "granularity": 2}),
        ("qwen3", "qwen3_moe", {"layers": (1,)}),
    ],
)
def test_upcycled_model_computes_what_the_dense_one_does(
    name: str, family: str, options: dict[str, Any], tmp_path: Path
) -> None:
    wanted = Upcycling(**options)
    dense, folder = upcycle(name, tmp_path, wanted)
    moe = AutoModelForCausalLM.from_pretrained(folder)
    assert moe.config.model_type == family
    assert moe.config.num_experts_per_tok == wanted.top_k
    assert moe.num_parameters() > dense.num_parameters()
    torch.testing.assert_close(logits(moe), logits(dense), atol=2e-5, rtol=0)


def test_experts_are_copies_and_routers_depend_on_the_seed_alone(
    tmp_path: Path, tensors: Read
) -> None:
    _, folder = upcycle("llama", tmp_path / "a", Upcycling(num_experts=4, seed=1))
    _, again = upcycle("llama", tmp_path / "b", Upcycling(num_experts=2, seed=1))
    _, other = upcycle("llama", tmp_path / "c", Upcycling(num_experts=4, seed=2))
    dense = tensors(tmp_path / "a" / "dense")
    found, fewer, seeded = tensors(folder), tensors(again), tensors(other)
    for layer in range(3):
        block = f"model.layers.{layer}.block_sparse_moe"
        for ours, theirs in (("w1", "gate"), ("w3", "up"), ("w2", "down")):
            mlp = dense[f"model.layers.{layer}.mlp.{theirs}_proj.weight"]
            for expert in range(4):
                assert torch.equal(found[f"{block}.experts.{expert}.{ours}.weight"], mlp)
        router = found[f"{block}.gate.weight"]
        assert torch.equal(router[:2], fewer[f"{block}.gate.weight"])
        assert not torch.equal(router, seeded[f"{block}.gate.weight"])
    routers = [found[f"model.layers.{layer}.block_sparse_moe.gate.weight"] for layer in range(3)]
    everything = torch.stack(routers)
    assert everything.unique().numel() == everything.numel()
    # initializer_range of the example is 0.2; 576 draws are within a tenth of it.
    assert everything.std().item() == pytest.approx(0.2, rel=0.1)
    assert everything.mean().item() == pytest.approx(0.0, abs=0.03)


def test_noise_is_of_the_asked_size_and_differs_between_experts(
    tmp_path: Path, tensors: Read
) -> None:
    _, folder = upcycle("llama", tmp_path, Upcycling(num_experts=2, noise=0.01))
    dense, found = tensors(tmp_path / "dense"), tensors(folder)
    base = dense["model.layers.0.mlp.up_proj.weight"]
    first, second = (
        found[f"model.layers.0.block_sparse_moe.experts.{e}.w3.weight"] - base for e in (0, 1)
    )
    assert first.std().item() == pytest.approx(0.01, rel=0.1)
    assert abs(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]) < 0.1


def test_casts_and_fewer_layers_go_with_upcycling(tmp_path: Path, tensors: Read) -> None:
    _, folder = upcycle(
        "qwen3", tmp_path, Upcycling(num_experts=4), dtype="bf16", selection=Selection(layers=(2,))
    )
    found, dense = tensors(folder), tensors(tmp_path / "dense")
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    up = dense["model.layers.2.mlp.up_proj.weight"].bfloat16()
    assert torch.equal(found["model.layers.0.mlp.experts.3.up_proj.weight"], up)
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 1}, "top_k must be at least 2"),
        ({"num_experts": 2, "top_k": 3}, "at most the number of experts"),
        ({"num_experts": 8, "top_k": 2, "granularity": 4}, r"granularity \(4\) must divide"),
        ({"seed": -1}, r"the seed \(-1\) must be at least 0"),
        ({"noise": -0.1}, r"and the noise \(-0.1\) a standard deviation"),
    ],
)
def test_impossible_numbers_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        Upcycling(**options)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("mixtral", {}, CheckpointError, "this mixtral model already has experts"),
        (
            "llama",
            {"layers": (0, 3)},
            CheckpointError,
            r"in layers \[0, 3\]; give numbers from 0 to 2",
        ),
        ("llama", {"layers": (0, 2)}, MappingError, "which has experts in every layer"),
        (
            "llama-biases",
            {},
            MappingError,
            "cannot have this one's model.add_bias, model.qkv_bias, model.attention_output_bias",
        ),
        (
            "llama",
            {"num_experts": 9, "top_k": 3, "granularity": 3},
            CheckpointError,
            r"width of the dense MLP \(56\)",
        ),
    ],
)
def test_models_that_cannot_be_upcycled_are_refused(
    name: str, options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        upcycle(name, tmp_path, Upcycling(**options))
    assert not (tmp_path / "megatron").exists()
