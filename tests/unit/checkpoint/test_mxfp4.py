"""Weights of 4 bits (MXFP4), as GPT-OSS is published, against what transformers makes of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from moe_megatron.checkpoint.convert import Execution, export_checkpoint, import_checkpoint
from moe_megatron.checkpoint.execute.compute import unpacked
from moe_megatron.checkpoint.inspection import inspect_checkpoint
from moe_megatron.checkpoint.verify.verification import Options, verify
from moe_megatron.errors import CheckpointError
from moe_megatron.testing import tiny_models

QUIET = Execution(progress=False)
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 16}
ROWS = {"gate_up_proj": (192, 64), "down_proj": (64, 96)}
"""Rows and columns of an expert's matrix, as it is packed."""
EXPERTS, LAYERS = 4, 3
Tensors = Callable[[Path], dict[str, Tensor]]


def bits(numbers: Tensor) -> Tensor:
    return numbers.contiguous().view(torch.int16)


def change(folder: Path, **tensors: Tensor | None) -> None:
    file = folder / "model.safetensors"
    found = {**load_file(file), **tensors}
    save_file({k: v for k, v in found.items() if v is not None}, file, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with experts of 4 bits, and exponents that keep all weights finite."""
    folder = tmp_path_factory.mktemp("mxfp4") / "hf"
    with pytest.MonkeyPatch.context() as patch:
        family, sizes = tiny_models.EXAMPLES["gpt_oss"]
        patch.setitem(tiny_models.EXAMPLES, "packed", (family, {**sizes, **SIZES}))
        tiny_models.build("packed").bfloat16().save_pretrained(folder)
    generator = torch.Generator().manual_seed(1)
    packed: dict[str, Any] = {}
    for layer in range(LAYERS):
        for name, (rows, columns) in ROWS.items():
            whole = f"model.layers.{layer}.mlp.experts.{name}"
            size, byte = (EXPERTS, rows, columns // 32), {"dtype": torch.uint8}
            numbers = torch.randint(0, 256, (*size, 16), generator=generator, **byte)
            packed[f"{whole}_blocks"] = numbers
            packed[f"{whole}_scales"] = torch.randint(115, 130, size, generator=generator, **byte)
            packed[whole] = None
    change(folder, **packed)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_every_byte_and_exponent_is_what_transformers_makes_of_it() -> None:
    numbers = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).repeat(256, 1, 1)
    exponents = torch.arange(256, dtype=torch.uint8).unsqueeze(1).repeat(1, 16)
    theirs = convert_moe_packed_tensors(numbers[None], exponents[None])[0].T
    ours = unpacked(numbers.flatten(1), exponents).bfloat16()
    assert ours.shape == (256, 512)
    assert torch.equal(bits(ours), bits(theirs))
    finite = unpacked(numbers[:255].flatten(1), exponents[:255]).bfloat16()
    assert torch.equal(bits(finite), bits(theirs[:255]))


def test_an_import_holds_the_numbers_of_transformers_and_an_export_is_bf16(
    source: Path, tmp_path: Path, tensors: Tensors
) -> None:
    report = import_checkpoint(source, tmp_path / "megatron", execution=QUIET)
    (remark,) = report.remarks
    assert "4-bit weights (MXFP4) are multiplied out to bf16" in remark
    assert "an export of the result stays bf16" in remark
    export_checkpoint(tmp_path / "megatron", tmp_path / "back", execution=QUIET)
    before, after = tensors(source), tensors(tmp_path / "back")
    for name in [name for name in before if name.endswith("_blocks")]:
        whole = name.removesuffix("_blocks")
        expected = convert_moe_packed_tensors(before.pop(name), before.pop(f"{whole}_scales"))
        assert torch.equal(bits(after.pop(whole)), bits(expected)), whole
    assert after.keys() == before.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert "quantization_config" not in config


def test_a_conversion_is_verified_and_a_wrong_exponent_found(
    source: Path, tmp_path: Path, tensors: Tensors
) -> None:
    import_checkpoint(source, tmp_path / "megatron", dtype="fp32", execution=QUIET)
    report = verify(source, tmp_path / "megatron", Options(progress=False))
    assert report.passed, report
    assert "holds quantised weights" in report.logits_skipped
    assert (
        inspect_checkpoint(source).parameters
        == inspect_checkpoint(tmp_path / "megatron").parameters
    )
    name = "model.layers.1.mlp.experts.down_proj_scales"
    other = tmp_path / "other"
    other.mkdir()
    for path in source.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    change(other, **{name: tensors(source)[name] + 1})
    report = verify(other, tmp_path / "megatron", Options(progress=False, logits=False))
    assert not report.passed
    assert report.weights is not None
    assert len(report.weights.differences) == EXPERTS
    change(other, **{name: tensors(source)[name][:, :, :1].contiguous()})
    message = f"{name} of shape .4, 64, 3. in U8; there are .4, 64, 1. in U8"
    with pytest.raises(CheckpointError, match=message):
        import_checkpoint(other, tmp_path / "none", execution=QUIET)
