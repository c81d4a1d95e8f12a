"""Verification finds what is not the same on both sides, and nothing else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from moe_megatron.checkpoint.convert import Execution, export_checkpoint, import_checkpoint
from moe_megatron.checkpoint.formats.torch_dist import TorchDist
from moe_megatron.checkpoint.verify.verification import Options, Verification, verify
from moe_megatron.errors import CheckpointError
from moe_megatron.testing.tiny_models import save

QUIET = Execution(progress=False)
WEIGHTS_ALONE = Options(logits=False, progress=False)
UP = "model.layers.1.block_sparse_moe.experts.2.w3.weight"


@pytest.fixture
def pair(mixtral: Path, imported: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A source and its import, to be changed."""
    shutil.copytree(mixtral, tmp_path / "hf")
    shutil.copytree(imported, tmp_path / "megatron")
    return tmp_path / "hf", tmp_path / "megatron"


def change(folder: Path, changes: dict[str, Tensor | None]) -> None:
    """Replace tensors of a folder, or take them out."""
    file = folder / "model.safetensors"
    tensors: dict[str, Tensor | None] = {**load_file(file), **changes}
    kept = {name: value for name, value in tensors.items() if value is not None}
    save_file(kept, file, metadata={"format": "pt"})


def found(source: Path, converted: Path) -> Verification:
    return verify(source, converted, WEIGHTS_ALONE)


def test_an_import_is_the_same_as_its_source(mixtral: Path, imported: Path) -> None:
    report = verify(mixtral, imported, Options(length=16, progress=False))
    assert report.passed
    assert report.family == "mixtral"
    assert report.structure == report.checksums == report.limits == ()
    assert report.blocks is not None
    assert report.weights is not None
    assert report.weights.differences == ()
    assert report.weights.casts == {}
    # 2 outside and the last norm; in each of 3 layers a norm, 2 of the attention, the MLP's norm
    # under two keys, the router, and 2 of each of 4 experts.
    assert report.weights.matrices == 3 + 3 * (1 + 2 + 2 + 1 + 2 * 4)
    assert report.logits is not None
    assert report.logits.positions == 32
    assert report.logits.agree
    told = json.loads(json.dumps(report.to_dict()))
    assert told["passed"] is True
    assert told["logits"]["top1_agreement"] == 1.0


def test_logits_further_apart_than_the_tolerance_are_a_mismatch(
    mixtral: Path, imported: Path
) -> None:
    report = verify(mixtral, imported, Options(length=8, tolerance=1e-9, progress=False))
    assert report.logits is not None
    assert report.logits.max_difference < 1e-4
    assert not report.logits.agree
    assert not report.passed


def test_an_export_is_the_same_as_its_source(imported: Path, tmp_path: Path) -> None:
    export_checkpoint(imported, tmp_path / "back", fused=True, execution=QUIET)
    report = verify(imported, tmp_path / "back", Options(length=8, progress=False))
    assert report.passed
    assert report.blocks is not None
    assert report.logits is not None


def test_one_changed_number_is_found_and_named(pair: tuple[Path, Path]) -> None:
    source, converted = pair
    value = load_file(source / "model.safetensors")[UP]
    value[3, 5] += 0.25
    change(source, {UP: value})
    report = found(source, converted)
    assert not report.passed
    assert report.checksums == ()
    assert report.weights is not None
    (difference,) = report.weights.differences
    assert UP in difference
    assert "decoder.layers.1.mlp.experts.experts.linear_fc1.weight of expert 2" in difference
    assert "1 of 5,376 numbers differ, by up to 0.25" in difference


def test_swapped_experts_are_found(pair: tuple[Path, Path]) -> None:
    source, converted = pair
    tensors, other = load_file(source / "model.safetensors"), UP.replace("experts.2", "experts.0")
    change(source, {UP: tensors[other], other: tensors[UP]})
    report = found(source, converted)
    assert report.weights is not None
    assert len(report.weights.differences) == 2


def test_bytes_that_changed_after_the_conversion_are_found(pair: tuple[Path, Path]) -> None:
    source, converted = pair
    with TorchDist(converted) as saved:
        tensor = saved.tensors["output_layer.weight"]
        offset = saved.data_offset(tensor, tensor.chunks[0])
        path = saved.path / saved.files[tensor.chunks[0].record.file]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes([77] * 4))
    report = found(source, converted)
    assert not report.passed
    (range_,) = report.checksums
    assert path.name in range_
    assert "is damaged between bytes" in range_
    assert report.weights is not None
    assert "output_layer.weight and lm_head.weight: 1 of" in report.weights.differences[0]


def test_nan_equals_itself_and_zero_is_not_minus_zero(tmp_path: Path, mixtral: Path) -> None:
    source, converted = tmp_path / "hf", tmp_path / "megatron"
    shutil.copytree(mixtral, source)
    value = load_file(source / "model.safetensors")[UP]
    value[0, 0], value[0, 1] = torch.nan, 0.0
    change(source, {UP: value})
    import_checkpoint(source, converted, execution=QUIET)
    assert found(source, converted).passed
    value[0, 1] = -0.0
    change(source, {UP: value})
    assert not found(source, converted).passed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({UP: None}, f"lacks {UP}"),
        ({"model.extra.weight": torch.ones(2)}, "holds model.extra.weight"),
        ({UP: torch.ones(3, 4)}, f"{UP} has the shape"),
    ],
)
def test_tensors_without_their_place_are_named(
    pair: tuple[Path, Path], changes: dict[str, Tensor | None], message: str
) -> None:
    change(pair[0], changes)
    report = found(*pair)
    assert not report.passed
    assert message in report.structure[0]
    assert report.weights is None
    assert report.logits_skipped == "the structure differs"


def test_a_megatron_side_of_other_sizes_is_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    save("mixtral-tied", tmp_path / "other", fused=False)
    report = found(tmp_path / "other", pair[1])
    assert not report.passed
    assert any("linear_qkv.weight has the shape" in problem for problem in report.structure)


def test_a_changed_configuration_is_named(pair: tuple[Path, Path]) -> None:
    path = pair[0] / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "rms_norm_eps": 0.05, "num_experts_per_tok": 1}))
    report = found(*pair)
    assert not report.passed
    assert len(report.structure) == 2
    assert "config.json has rms_norm_eps 0.05" in report.structure[1]


def test_a_cast_is_compared_as_it_was_made(mixtral: Path, tmp_path: Path) -> None:
    import_checkpoint(mixtral, tmp_path / "bf16", dtype="bf16", execution=QUIET)
    report = found(mixtral, tmp_path / "bf16")
    assert report.passed
    assert report.weights is not None
    assert report.weights.casts == {"F32 -> BF16": report.weights.matrices}
    export_checkpoint(tmp_path / "bf16", tmp_path / "fp32", dtype="fp32", execution=QUIET)
    back = found(tmp_path / "bf16", tmp_path / "fp32").weights
    assert back is not None
    assert list(back.casts) == ["BF16 -> F32"]
    assert not found(tmp_path / "bf16", mixtral).passed  # it is not what the cast weights give


def test_quantised_weights_are_compared_with_their_factors(
    tmp_path: Path, tensors: Callable[[Path], dict[str, Tensor]]
) -> None:
    source = tmp_path / "hf"
    save("deepseek_v3", source, fused=False)
    name = "model.layers.0.mlp.gate_proj.weight"
    weight = tensors(source)[name]
    factors = torch.rand(-(-weight.shape[0] // 16), -(-weight.shape[1] // 16)) + 0.5
    change(source, {name: weight.to(torch.float8_e4m3fn), f"{name}_scale_inv": factors})
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    (source / "config.json").write_text(json.dumps(config))
    import_checkpoint(source, tmp_path / "megatron", dtype="fp32", execution=QUIET)
    report = verify(source, tmp_path / "megatron", Options(progress=False))
    assert report.passed, report
    assert "holds quantised weights" in report.logits_skipped
    change(source, {f"{name}_scale_inv": factors + 0.1})
    assert not found(source, tmp_path / "megatron").passed


def test_two_folders_of_one_kind_are_refused(mixtral: Path, imported: Path) -> None:
    with pytest.raises(CheckpointError, match="both Hugging Face folders"):
        verify(mixtral, mixtral)
    with pytest.raises(CheckpointError, match="both Megatron checkpoints"):
        verify(imported, imported)


def test_a_folder_that_is_no_checkpoint_is_refused(mixtral: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds neither config\.json"):
        verify(mixtral, tmp_path)


@pytest.mark.parametrize("text", ["{", '{"digest": "0", "content": "{}"}', "[]"])
def test_damaged_checksums_are_a_mismatch(text: str, pair: tuple[Path, Path]) -> None:
    (pair[1] / "release" / "checksums.json").write_text(text)
    report = found(*pair)
    assert not report.passed
    (problem,) = report.checksums
    assert "checksums.json is damaged" in problem


def test_a_result_without_checksums_is_compared_all_the_same(pair: tuple[Path, Path]) -> None:
    (pair[1] / "release" / "checksums.json").unlink()
    report = found(*pair)
    assert report.passed
    assert report.blocks is None
