"""Folders in PEFT's format that are damaged, hostile, or of another model: one paragraph each."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from moe_megatron.adapters.base_hash import hash_of_folder
from moe_megatron.adapters.hf_layouts import HfLayouts, layouts_of_folder
from moe_megatron.adapters.peft_folder import CONFIG, NOTE, WEIGHTS, read_folder, write_folder
from moe_megatron.adapters.to_peft import to_peft
from moe_megatron.errors import CheckpointError, MappingError
from moe_megatron.testing import tiny_models

ATTENTION = "base_model.model.model.layers.0.self_attn."
EXPERTS = "base_model.model.model.layers.0.mlp.experts."


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    tiny_models.save("qwen3_moe", folder, fused=False)
    return folder


@pytest.fixture(scope="module")
def layouts(model: Path) -> HfLayouts:
    return layouts_of_folder(model)


@pytest.fixture
def folder(model, layouts, draw, tmp_path) -> Path:
    adapter = draw(layouts.fused)
    write_folder(
        tmp_path / "a", to_peft(adapter, layouts.fused, is_moe=True), hash_of_folder(model)
    )
    return tmp_path / "a"


def set_config(folder: Path, **values: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def set_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file({name: it.contiguous() for name, it in tensors.items()}, folder / WEIGHTS)


def test_a_folder_of_another_base_is_refused_by_hash(folder, model):
    found = read_folder(folder)
    found.check_base(hash_of_folder(model))
    with pytest.raises(CheckpointError, match=r"trained on another base.*sha256:.*Give the model"):
        found.check_base("sha256:" + "0" * 64)
    (folder / NOTE).unlink()
    read_folder(folder).check_base("sha256:" + "0" * 64)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (CONFIG, f"holds no {CONFIG}; give the folder of an adapter"),
        (WEIGHTS, f"holds no {WEIGHTS}; copy the whole folder"),
    ],
)
def test_missing_files_are_named(folder, name, message):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=message):
        read_folder(folder)


def test_pickled_weights_are_not_read(folder):
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="pickled, and reading that can execute code"):
        read_folder(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (CONFIG, "{", "cannot be read as JSON"),
        (CONFIG, "[1]", "is not a JSON object"),
        (NOTE, '{"version": 9, "base": "x"}', "is of the version 9, and 1 is needed"),
        (NOTE, '{"version": 1, "base": 5}', "is needed; export the adapter again"),
        (WEIGHTS, "junk", "not a complete safetensors file"),
    ],
)
def test_damaged_files_are_named(folder, name, content, message):
    (folder / name).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        read_folder(folder)


def test_a_link_out_of_the_folder_is_refused(folder, tmp_path):
    shutil.move(folder / WEIGHTS, tmp_path / "elsewhere")
    (folder / WEIGHTS).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="elsewhere"):
        read_folder(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "IA3"}, "of the kind IA3, but only low-rank adapters"),
        ({"bias": "all"}, "sets bias, which more than W .* merge it with peft"),
        ({"modules_to_save": ["lm_head"]}, "sets modules_to_save"),
        ({"init_lora_weights": "pissa"}, "sets init_lora_weights"),
        ({"lora_alpha": "16", "alpha_pattern": {}}, "says lora_alpha: 16, which cannot be"),
        ({"lora_alpha": 0, "alpha_pattern": {}}, "says lora_alpha: 0, which cannot be"),
        ({"alpha_pattern": {"(a+)+": 2}}, r"the regular expression \(a\+\)\+, where only names"),
        ({"target_parameters": 7}, "says target_parameters: 7"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, "mlp.experts, which matches no matrix"),
    ],
)
def test_configurations_that_mean_something_else_are_refused(folder, layouts, values, message):
    set_config(folder, **values)
    with pytest.raises((MappingError, CheckpointError), match=message):
        read_folder(folder).fitted(layouts.both)


def other_name(tensors):
    tensors[f"{ATTENTION}q_prj.lora_A.weight"] = tensors.pop(f"{ATTENTION}q_proj.lora_A.weight")
    tensors[f"{ATTENTION}q_prj.lora_B.weight"] = tensors.pop(f"{ATTENTION}q_proj.lora_B.weight")


def no_b(tensors):
    del tensors[f"{ATTENTION}q_proj.lora_B.weight"]


def narrow(tensors):
    tensors[f"{ATTENTION}q_proj.lora_A.weight"] = torch.ones(3, 47)


def odd_rank(tensors):
    for part in "AB":
        name = f"{EXPERTS}lora_{part}.weight"
        tensors[name] = tensors[name][:-1] if part == "A" else tensors[name][:, :-1]


def exchanged(tensors):
    a, b = (f"{EXPERTS}lora_{part}.weight" for part in "AB")
    tensors[a], tensors[b] = tensors[b].T, tensors[a].T


def embedding(tensors):
    tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = torch.ones(2, 131)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_name, r"self_attn.q_prj, which matches no matrix .* Did you mean .*q_proj"),
        (no_b, "has no whole pair of matrices lora_A and lora_B"),
        (narrow, r"has lora_A \[3, 47\] and lora_B .* but this model needs \[rank, 48\]"),
        (odd_rank, r"needs \[6 \* rank, 40\] and \[48, rank \* 6\]"),
        (exchanged, "has inputs and outputs exchanged"),
        (embedding, "lora_embedding_A, which is no tensor of a low-rank adapter"),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder, layouts, change, message):
    set_tensors(folder, change)
    with pytest.raises((MappingError, CheckpointError), match=message):
        read_folder(folder).fitted(layouts.both)


def test_nothing_is_overwritten(folder, layouts, draw):
    before = (folder / WEIGHTS).read_bytes()
    adapter = to_peft(draw(layouts.fused, seed=2), layouts.fused, is_moe=True)
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        write_folder(folder, adapter, "sha256:0")
    assert (folder / WEIGHTS).read_bytes() == before


def test_an_adapter_of_a_model_of_other_sizes_is_not_written(layouts, draw):
    adapter = draw(layouts.fused)
    place = next(iter(adapter))
    with pytest.raises(CheckpointError, match=r"layers.9.*which this model does not have"):
        to_peft({place.replace(".0.", ".9."): adapter[place]}, layouts.fused, is_moe=True)
    wrong = {"decoder.layers.0.self_attention.linear_proj.weight": adapter[place]}
    with pytest.raises(CheckpointError, match=r"is for a matrix \[160, 48\], but this model has"):
        to_peft(wrong, layouts.fused, is_moe=True)
    with pytest.raises(MappingError, match="adapts no matrix"):
        to_peft({}, layouts.fused, is_moe=True)
