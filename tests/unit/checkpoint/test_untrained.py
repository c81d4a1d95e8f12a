"""Families that only convert say so wherever a person meets them, and their training is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from moe_megatron import MoEModel
from moe_megatron.checkpoint.convert import Execution, export_checkpoint, import_checkpoint
from moe_megatron.checkpoint.edit.selection import Selection
from moe_megatron.checkpoint.inspection import inspect_checkpoint
from moe_megatron.checkpoint.verify.verification import Options, verify
from moe_megatron.config import apply_overrides, load_config
from moe_megatron.errors import CheckpointError
from moe_megatron.families import FAMILIES
from moe_megatron.mcore.state.checkpoint import check_loadable
from moe_megatron.run.changes import check_load
from moe_megatron.testing import tiny_models

QUIET = Execution(progress=False)
UNTRAINED = sorted(family.name for family in FAMILIES.values() if family.untrained)
REASONS = {
    "deepseek_v32": "its attention is sparse",
    "llama4_text": "its attention looks within chunks",
    "qwen3_5_moe_text": "most of its layers have linear attention",
    "qwen3_next": "most of its layers have linear attention",
}


def test_the_families_that_only_convert() -> None:
    assert sorted(REASONS) == UNTRAINED


@pytest.mark.parametrize("name", UNTRAINED)
def test_it_converts_is_verified_says_so_and_is_not_trained(name: str, tmp_path: Path) -> None:
    source, megatron = tmp_path / "hf", tmp_path / "megatron"
    tiny_models.save(name, source, fused=False)
    report = import_checkpoint(source, megatron, execution=QUIET)
    (limit,) = report.limits
    assert limit.startswith("a model of this family does not train here: ")
    assert REASONS[name] in limit
    assert inspect_checkpoint(source).limits == (limit,)
    assert inspect_checkpoint(megatron).limits == (limit,)

    found = verify(source, megatron, Options(progress=False))
    assert found.passed
    assert found.logits is None
    assert REASONS[name] in found.logits_skipped

    refusal = f"holds a {name} model, which does not train here: .*{REASONS[name]}"
    run = load_config(megatron / "release" / "config.yaml")
    run = apply_overrides(run, {"checkpoint.load": str(megatron)})
    for attempt in (
        lambda: check_load(run),
        lambda: check_loadable(megatron, run),
        lambda: MoEModel.from_pretrained(source),
        lambda: MoEModel.from_pretrained(megatron),
    ):
        with pytest.raises(CheckpointError, match=refusal):
            attempt()
    with pytest.raises(CheckpointError, match="convert the whole model, without choosing layers"):
        import_checkpoint(source, tmp_path / "part", selection=Selection(layers=(0,)))


@pytest.mark.parametrize(
    ("name", "prefix"), [("ernie4_5_moe", "model.mtp_block.0."), ("qwen3_next", "mtp.layers.0.")]
)
def test_tensors_that_transformers_does_not_read_travel_too(
    name: str, prefix: str, tmp_path: Path, tensors: Callable[[Path], dict[str, Tensor]]
) -> None:
    tiny_models.save(name, tmp_path / "hf", fused=False)
    file = tmp_path / "hf" / "model.safetensors"
    more = {f"{prefix}norm.weight": torch.randn(48), f"{prefix}fc.weight": torch.randn(48, 96)}
    save_file({**load_file(file), **more}, file, metadata={"format": "pt"})
    import_checkpoint(tmp_path / "hf", tmp_path / "megatron", execution=QUIET)
    assert verify(tmp_path / "hf", tmp_path / "megatron", Options(progress=False)).passed
    export_checkpoint(tmp_path / "megatron", tmp_path / "back", execution=QUIET)
    before, after = tensors(tmp_path / "hf"), tensors(tmp_path / "back")
    assert before.keys() == after.keys() >= more.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
