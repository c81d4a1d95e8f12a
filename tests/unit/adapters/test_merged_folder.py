"""Bases on disk with an adapter merged into them, against the same in memory."""

import os
from pathlib import Path

import pytest
import torch

from moe_megatron import MoEModel
from moe_megatron.adapters.base_hash import hash_of_folder
from moe_megatron.adapters.hf_layouts import layouts_of_folder
from moe_megatron.adapters.merged_folder import merge_folder
from moe_megatron.adapters.merging import merge_into
from moe_megatron.adapters.peft_folder import read_folder, write_folder
from moe_megatron.adapters.to_peft import to_peft
from moe_megatron.checkpoint.convert import Execution, import_checkpoint
from moe_megatron.errors import CheckpointError
from moe_megatron.testing import tiny_models


def written(model: Path, draw, **options) -> tuple[Path, dict]:
    """An adapter of a model, in a folder beside it."""
    layouts = layouts_of_folder(model)
    adapter = draw(layouts.fused, **options)
    folder = model.with_name("adapter")
    peft = to_peft(adapter, layouts.fused, is_moe=layouts.family.is_moe)
    write_folder(folder, peft, hash_of_folder(model))
    return folder, adapter


def contents(folder: Path) -> dict[str, bytes]:
    return {str(it): it.read_bytes() for it in folder.rglob("*") if it.is_file()}


@pytest.mark.parametrize(
    ("name", "fused"),
    [
        ("qwen2_moe-dense-layers", False),
        ("gpt_oss", True),
        *(
            pytest.param(name, fused, marks=pytest.mark.deep)
            for name in ("olmoe", "mixtral-tied", "deepseek_v3", "granitemoeshared", "llama")
            for fused in (False, True)
        ),
    ],
)
def test_a_merged_folder_has_the_weights_that_merging_in_memory_gives(name, fused, tmp_path, draw):
    base = tmp_path / "model"
    tiny_models.save(name, base, fused=fused)
    before = contents(base)
    folder, _ = written(base, draw)
    expected = MoEModel.from_pretrained(base)
    # As it is in the file, where scales may have moved into B.
    merge_into(expected, read_folder(folder).fitted(layouts_of_folder(base).both))
    merge_folder(base, tmp_path / "merged", adapter=folder)
    got = MoEModel.from_pretrained(tmp_path / "merged").state_dict()
    for key, tensor in expected.state_dict().items():
        assert torch.equal(got[key], tensor), key
    assert contents(base) == before


def test_a_megatron_checkpoint_and_its_source_become_the_same_model(tmp_path, draw):
    base, megatron = tmp_path / "model", tmp_path / "megatron"
    tiny_models.save("qwen3_moe", base, fused=False)
    import_checkpoint(base, megatron, execution=Execution(progress=False))
    folder, _ = written(base, draw)
    merge_folder(base, tmp_path / "one", adapter=folder)
    merge_folder(megatron, tmp_path / "two", adapter=folder)
    merge_folder(base, tmp_path / "three", adapter=folder, as_megatron=True)
    models = [MoEModel.from_pretrained(tmp_path / it) for it in ("one", "two", "three")]
    first = models[0].state_dict()
    for other in models[1:]:
        assert all(torch.equal(first[key], tensor) for key, tensor in other.state_dict().items())
    assert not any(it.name.startswith(".") for it in tmp_path.iterdir())


def test_a_base_in_bf16_is_rounded_once(tmp_path, draw):
    base = tmp_path / "model"
    tiny_models.build("qwen3_moe").bfloat16().save_pretrained(base)
    folder, adapter = written(base, draw, equal=True)
    merge_folder(base, tmp_path / "merged", adapter=folder)
    place = "decoder.layers.0.self_attention.linear_proj.weight"
    before, after = (
        MoEModel.from_pretrained(it).get_submodule("layers.0.attention.o_proj").weight
        for it in (base, tmp_path / "merged")
    )
    exact = before.float() + adapter[place].delta()
    assert torch.equal(after, exact.bfloat16())


def test_what_cannot_be_merged_leaves_nothing_behind(tmp_path, draw):
    base, other = tmp_path / "model", tmp_path / "other"
    tiny_models.save("qwen3_moe", base, fused=False)
    tiny_models.save("qwen3_moe", other, fused=False, seed=1)
    folder, _ = written(base, draw)
    names = set(os.listdir(tmp_path))
    with pytest.raises(CheckpointError, match="trained on another base"):
        merge_folder(other, tmp_path / "merged", adapter=folder)
    with pytest.raises(CheckpointError, match="no checkpoint of a run, so it holds no adapter"):
        merge_folder(base, tmp_path / "merged")
    with pytest.raises(CheckpointError, match="is the source"):
        merge_folder(base, base, adapter=folder)
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        merge_folder(base, other, adapter=folder)
    tiny_models.save("olmoe", tmp_path / "olmoe", fused=False)
    with pytest.raises(CheckpointError, match="belongs to a model of other sizes"):
        merge_folder(tmp_path / "olmoe", tmp_path / "merged", adapter=folder)
    assert set(os.listdir(tmp_path)) == names | {"olmoe"}
