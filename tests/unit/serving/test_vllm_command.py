"""The command for vLLM, and what it says of folders that vLLM may not like."""

import json
from pathlib import Path
from typing import Any

import pytest

from moe_megatron.errors import CheckpointError
from moe_megatron.serving.vllm_command import VllmCommand, vllm_command


def folder(place: Path, **config: Any) -> Path:
    place.mkdir(exist_ok=True)
    (place / "config.json").write_text(
        json.dumps({"architectures": ["MixtralForCausalLM"], "dtype": "bfloat16", **config})
    )
    for name in ("model.safetensors", "tokenizer.json"):
        (place / name).touch()
    return place


def command(place: Path, **more: Any) -> VllmCommand:
    return vllm_command(place, name="mine", host="127.0.0.1", port=8000, **more)


def test_a_folder_that_vllm_knows_has_a_command_and_no_remarks(tmp_path: Path) -> None:
    found = command(folder(tmp_path / "a b"), context=512)
    assert str(found) == (
        f"vllm serve '{tmp_path}/a b' --served-model-name mine --host 127.0.0.1 --port 8000 "
        "--max-model-len 512"
    )
    assert found.remarks == ()


PACKED = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
ZEROS = {"group_0": {"weights": {"num_bits": 4, "symmetric": False}}}


@pytest.mark.parametrize(
    ("config", "remark"),
    [
        ({"architectures": ["OwnForCausalLM"]}, "(OwnForCausalLM) is not among"),
        ({"architectures": None}, "(none) is not among"),
        ({"dtype": "float32"}, "half the memory"),
        ({"quantization_config": {"quant_method": "own"}}, "'own'"),
        ({"quantization_config": {**PACKED, "format": "moe-megatron"}}, "differ in bits"),
        ({"quantization_config": {**PACKED, "config_groups": ZEROS}}, "have zero points"),
    ],
)
def test_what_vllm_may_not_like_is_said(tmp_path: Path, config: Any, remark: str) -> None:
    (found,) = command(folder(tmp_path, **config)).remarks
    assert remark in found


def test_adapters_are_named_with_the_largest_rank(tmp_path: Path) -> None:
    for name, config in (
        ("law", {"r": 4, "rank_pattern": {"q_proj": 24}}),
        ("code", {"r": 8, "target_parameters": ["mlp.experts.down_proj"]}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(config))
    found = command(
        folder(tmp_path / "base"), adapters={it: tmp_path / it for it in ("law", "code")}
    )
    assert "--enable-lora --lora-modules law=" in str(found)
    assert str(found).endswith("--max-lora-rank 32")
    (remark,) = found.remarks
    assert "the adapter code changes parameters of experts" in remark


def test_what_is_no_folder_of_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        command(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="is not a JSON object"):
        command(tmp_path)
