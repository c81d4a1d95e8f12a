import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from moe_megatron import MoEModel
from moe_megatron.errors import CheckpointError, MappingError


@pytest.fixture
def saved(build, tmp_path):
    build(router_type="sigmoid", expert_bias=True, layer_frequency=(0, 1)).save_pretrained(
        tmp_path / "model"
    )
    return tmp_path / "model"


def test_loaded_model_is_the_saved_one_bit_by_bit(build, tokens, tmp_path):
    model = build(router_type="sigmoid", expert_bias=True, layer_frequency=(0, 1))
    model.layers[1].moe.router.expert_bias.normal_()
    model.save_pretrained(tmp_path / "new" / "model")
    loaded = MoEModel.from_pretrained(str(tmp_path / "new" / "model"))
    assert loaded.model_config == model.model_config
    assert loaded.moe_config == model.moe_config
    assert loaded.vocab_size == model.vocab_size
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert torch.equal(loaded(tokens).logits, model.eval()(tokens).logits)
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_tied_matrix_is_saved_once(saved):
    assert "lm_head.weight" not in load_file(saved / "model.safetensors")
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]


def test_precision_is_kept_or_converted(build, tmp_path):
    build().to(torch.bfloat16).save_pretrained(tmp_path)
    kept = MoEModel.from_pretrained(tmp_path)
    converted = MoEModel.from_pretrained(tmp_path, dtype=torch.float32)
    assert kept.embed_tokens.weight.dtype == torch.bfloat16
    assert converted.embed_tokens.weight.dtype == torch.float32
    assert torch.equal(converted.embed_tokens.weight, kept.embed_tokens.weight.float())


def test_saving_again_replaces_the_model(build, saved):
    build(seed=7).save_pretrained(saved)
    assert torch.equal(
        MoEModel.from_pretrained(saved).embed_tokens.weight, build(seed=7).embed_tokens.weight
    )


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=f"has no {name}; give a folder written by"):
        MoEModel.from_pretrained(saved)


def test_model_of_another_kind_is_neither_loaded_nor_overwritten(build, saved):
    (saved / "config.json").write_text(json.dumps({"model_type": "mixtral"}))
    with pytest.raises(MappingError, match="of a mixtral model lacks 'num_hidden_layers'"):
        MoEModel.from_pretrained(saved)
    with pytest.raises(CheckpointError, match=r"another kind of model, which saving .* destroy"):
        build().save_pretrained(saved)


def test_damaged_files_are_refused(saved):
    weights = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        MoEModel.from_pretrained(saved)
    (saved / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        MoEModel.from_pretrained(saved)


def test_configuration_that_describes_no_model_is_refused(saved):
    values = json.loads((saved / "config.json").read_text())
    values["moe"]["num_expert"] = 3
    (saved / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"does not describe a model .*num_expert"):
        MoEModel.from_pretrained(saved)


def test_files_of_two_saves_are_refused(build, saved, tmp_path):
    build(num_layers=3).save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "config.json", saved)
    with pytest.raises(CheckpointError, match="from different models: a save was interrupted"):
        MoEModel.from_pretrained(saved)


def test_tensors_that_do_not_fit_are_refused(saved):
    tensors = load_file(saved / "model.safetensors")
    tensors["final_norm.weight"] = tensors["final_norm.weight"][:-1]
    save_file(tensors, saved / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"final_norm.weight .* \[31\] and must have \[32\]"):
        MoEModel.from_pretrained(saved)
    del tensors["final_norm.weight"]
    save_file(tensors, saved / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"in 1 tensors, first: final_norm.weight is missing"):
        MoEModel.from_pretrained(saved)
    tensors |= {"final_norm.weight": torch.ones(32), "a.weight": torch.ones(1)}
    save_file(tensors, saved / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"first: a.weight is unexpected"):
        MoEModel.from_pretrained(saved)


def test_folder_that_cannot_be_written_is_reported(build, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        CheckpointError, match=r"cannot write a model to .*Check that it is a folder"
    ):
        build().save_pretrained(tmp_path / "file")
