"""`MoEModel` and folders of other kinds: the same logits as transformers, there and back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from moe_megatron import models
from moe_megatron.checkpoint.convert import Execution, import_checkpoint
from moe_megatron.errors import CheckpointError, ConfigError, MappingError
from moe_megatron.families import FAMILIES
from moe_megatron.model.moe_model import MoEModel
from moe_megatron.testing.tiny_models import save
from tests.examples import FIRST, deep_but

QUIET = Execution(progress=False)
TOKENS = torch.randint(0, 131, (2, 24), generator=torch.Generator().manual_seed(3))
Read = Callable[[Path], dict[str, Tensor]]

COMPUTED = {
    "mixtral": True,
    "mixtral-tied": False,
    "olmoe": False,
    "qwen3_moe": True,
    "qwen3_moe-dense-layers": False,
    "qwen2_moe": True,
    "qwen2_moe-dense-layers": False,
    "glm4_moe": True,
    "glm4_moe-qk-norm": False,
    "granitemoe": False,
    "granitemoe-tied": False,
    "granitemoe-neutral": True,
    "phimoe": False,
    "phimoe-plain": True,
    "olmoe-groups": False,
    "qwen3_moe-biases": True,
    "dots1": False,
    "ernie4_5_moe": True,
    "granitemoeshared": True,
    "hunyuan_v1_moe": False,
    "minimax_m2": False,
    "llama": False,
    "qwen2": False,
    "deepseek_v2": True,
    "deepseek_v2-lite": False,
    "deepseek_v3": False,
    "gpt_oss": False,
    "mistral": False,
    "dots1-windows": False,
}
"""Examples that `MoEModel` computes, and whether their experts are saved fused."""


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        answer: Tensor = model(TOKENS).logits
    return answer


@pytest.mark.parametrize("name", deep_but(FIRST, COMPUTED))
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    theirs = save(name, tmp_path / "hf", fused=COMPUTED[name])
    ours = MoEModel.from_pretrained(tmp_path / "hf")
    assert not ours.training
    torch.testing.assert_close(logits(ours), logits(theirs), atol=1e-4, rtol=0)
    import_checkpoint(tmp_path / "hf", tmp_path / "megatron", execution=QUIET)
    imported = MoEModel.from_pretrained(str(tmp_path / "megatron")).state_dict()
    assert imported.keys() == ours.state_dict().keys()
    for key, value in ours.state_dict().items():
        assert torch.equal(imported[key], value), key


@pytest.mark.parametrize("name", ["mixtral", "olmoe", "qwen2_moe-dense-layers", "llama"])
def test_saved_as_hugging_face_every_tensor_returns(
    name: str, tmp_path: Path, tensors: Read
) -> None:
    theirs = save(name, tmp_path / "hf", fused=False)
    model = MoEModel.from_pretrained(tmp_path / "hf")
    model.save_pretrained(tmp_path / "back", format="hugging_face")
    before, after = tensors(tmp_path / "hf"), tensors(tmp_path / "back")
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert type(again) is type(theirs)
    assert torch.equal(logits(again), logits(theirs))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"router_type": "sigmoid", "expert_bias": True, "shared_expert_hidden_size": 24},
        {"num_experts": None, "tie_embeddings": True, "qk_norm": True},
        {"residual_multiplier": 0.3, "logits_divisor": 2.0, "tie_embeddings": True},
        {"router_type": "sparse_mixer", "norm": "LayerNorm", "lm_head_bias": True},
    ],
    ids=["mixtral", "glm4_moe", "qwen3", "granitemoe", "phimoe"],
)
def test_own_model_returns_from_hugging_face_and_from_megatron(
    options: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_experts": 4, "num_layers": 2, "num_attention_heads": 4}
    shape |= {"expert_hidden_size": 24, "vocab_size": 131, "max_position_embeddings": 64}
    model = MoEModel(**{**shape, "tie_embeddings": False, **options}).bfloat16().eval()
    for format in ("hugging_face", "megatron"):
        model.save_pretrained(tmp_path / format, format=format)
        loaded = MoEModel.from_pretrained(tmp_path / format)
        assert loaded.state_dict().keys() == model.state_dict().keys()
        for key, value in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value), key
        torch.testing.assert_close(logits(loaded), logits(model), atol=0, rtol=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hugging_face", "megatron"]
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        model.save_pretrained(tmp_path / "hugging_face", format="hugging_face")


def test_what_no_family_holds_is_not_saved(tmp_path: Path) -> None:
    model = MoEModel(hidden_size=32, num_layers=1, vocab_size=131, activation="squared_relu")
    with pytest.raises(MappingError, match="no Hugging Face family can express this model"):
        model.save_pretrained(tmp_path / "hf", format="hugging_face")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="cannot be saved as 'gguf'; use 'moe_megatron'"):
        model.save_pretrained(tmp_path / "hf", format="gguf")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("deepseek_v3-yarn", "MoEModel does not compute model.rope_scaling"),
        ("gpt_oss-yarn", "MoEModel does not compute model.rope_scaling"),
        ("switch_transformers", "Only the decoder runs in Megatron"),
    ],
)
def test_what_it_does_not_compute_is_refused(name: str, message: str, tmp_path: Path) -> None:
    save(name, tmp_path / "hf", fused=False)
    with pytest.raises(
        CheckpointError, match=f"MoEModel cannot compute the model in .*. {message}"
    ):
        MoEModel.from_pretrained(tmp_path / "hf")
    import_checkpoint(tmp_path / "hf", tmp_path / "megatron", execution=QUIET)
    with pytest.raises(CheckpointError, match=message):
        MoEModel.from_pretrained(tmp_path / "megatron")


def test_classes_take_their_family_alone(mixtral: Path, imported: Path) -> None:
    loaded = models.Mixtral.from_pretrained(mixtral, dtype=torch.bfloat16)
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.bfloat16}
    assert models.Mixtral.from_pretrained(imported).moe_config == loaded.moe_config
    for folder in (mixtral, imported):
        with pytest.raises(CheckpointError, match="holds a mixtral model, not olmoe; load it with"):
            models.OLMoE.from_pretrained(folder)


def test_every_family_has_a_class() -> None:
    classes = [getattr(models, name) for name in models.__all__ if name != "MoEModel"]
    families = {each.family for each in classes}
    assert families == {family.name for family in FAMILIES.values()}


def test_multi_token_prediction_is_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, tensors: Read
) -> None:
    torch.manual_seed(0)
    options = {"router_type": "sigmoid", "expert_bias": True, "shared_expert_hidden_size": 24}
    options |= {"num_experts": 2, "expert_hidden_size": 24, "tie_embeddings": False}
    model = MoEModel(hidden_size=32, num_layers=1, vocab_size=131, **options)
    model.save_pretrained(tmp_path / "hf", format="hugging_face")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["model_type"] == "glm4_moe"
    _add_prediction(tmp_path / "hf", config, tensors(tmp_path / "hf"))
    loaded = MoEModel.from_pretrained(tmp_path / "hf")
    assert "1 layer(s) of multi-token prediction are left out" in caplog.text
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def _add_prediction(folder: Path, config: dict[str, Any], found: dict[str, Tensor]) -> None:
    """One layer of multi-token prediction, a copy of the last layer and what is around it."""
    from safetensors.torch import save_file

    more = {
        name.replace("layers.0.", "layers.1."): value.clone()
        for name, value in found.items()
        if "layers.0." in name
    }
    around = {"enorm": (32,), "hnorm": (32,), "shared_head.norm": (32,), "eh_proj": (32, 64)}
    more |= {f"model.layers.1.{name}.weight": torch.ones(*size) for name, size in around.items()}
    save_file({**found, **more}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**config, "num_nextn_predict_layers": 1}))
