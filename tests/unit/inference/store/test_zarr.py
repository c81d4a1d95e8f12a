"""Experts that were packed elsewhere are those of the folder, or an error."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from moe_megatron.caching import ExpertStore, register_store
from moe_megatron.errors import CheckpointError, ConfigError, MoEError
from moe_megatron.inference.optimized_model import OptimizedMoEModel
from moe_megatron.inference.store.pack import pack_experts
from moe_megatron.inference.store.zarr import ZarrStore
from moe_megatron.testing.expert_models import save_model

IDS = torch.arange(18).view(2, 9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("olmoe", tmp_path_factory.mktemp("olmoe") / "model", torch.bfloat16)


@pytest.fixture(scope="module")
def wanted(folder: Path) -> torch.Tensor:
    model = OptimizedMoEModel.from_pretrained(folder)
    logits: torch.Tensor = model(IDS).logits
    model.close()
    return logits


@pytest.fixture
def packed(folder: Path, tmp_path: Path) -> Path:
    pack_experts(folder, tmp_path / "store", progress=False)
    return tmp_path / "store"


def chunk(store: Path, layer: int, expert: int) -> Path:
    (found,) = store.glob(f"*.zarr/c/{layer}/{expert}/0")
    return found


def test_logits_are_those_of_the_folder_also_without_its_experts(
    folder: Path, packed: Path, wanted: torch.Tensor, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((folder / "config.json").read_bytes())
    tensors = load_file(folder / "model.safetensors")
    others = {name: it for name, it in tensors.items() if ".experts." not in name}
    save_file(others, bare / "model.safetensors", {"format": "pt"})
    for source in (folder, bare):
        model = OptimizedMoEModel.from_pretrained(source, experts=packed)
        model.enable_dynamic_loading(2)
        assert torch.equal(model(IDS).logits, wanted)
        assert model.get_expert_cache().get_stats().bytes_read > 0
        model.close()
    save_file(
        {**others, "lm_head.weight": others["lm_head.weight"] * 2}, bare / "model.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"experts of another model .* what is no expert"):
        OptimizedMoEModel.from_pretrained(bare, experts=packed)


def test_a_chunk_that_is_lost_or_damaged_fails_one_call_and_no_more(
    folder: Path, packed: Path, wanted: torch.Tensor
) -> None:
    model = OptimizedMoEModel.from_pretrained(folder, experts=packed)
    model.enable_dynamic_loading(2)
    needed = chunk(packed, 2, int(model_needs(model)))
    data = needed.read_bytes()
    changed = bytes([data[0] ^ 1]) + data[1:]
    for harm, said in (
        (needed.unlink, "is missing"),
        (lambda: needed.write_bytes(changed), "Digest mismatch"),
        (lambda: needed.write_bytes(data[:7]), "Not enough data"),
    ):
        model.enable_dynamic_loading(2)  # forgets what it has read
        harm()
        with pytest.raises(CheckpointError, match="of layer 3 cannot be read") as error:
            model(IDS)
        assert said in str(error.value)
        assert "tensorstore_spec" not in str(error.value)
        needed.write_bytes(data)
        assert torch.equal(model(IDS).logits, wanted)
    model.close()


def model_needs(model: OptimizedMoEModel) -> int:
    """An expert of the last layer that the ids need."""
    with model.record() as recorder:
        model(IDS)
    return recorder.trace("pass").passes[0][2][0]


def test_a_store_is_there_whole_or_not(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: torch.Tensor
) -> None:
    target = tmp_path / "store"
    from moe_megatron.inference.store.hugging_face import HuggingFaceStore

    read = HuggingFaceStore.read_into

    def stops(self: HuggingFaceStore, key: tuple[int, int], memory: memoryview) -> None:
        if key == (1, 3):
            raise KeyboardInterrupt
        read(self, key, memory)

    with monkeypatch.context() as patched:
        patched.setattr(HuggingFaceStore, "read_into", stops)
        with pytest.raises(KeyboardInterrupt):
            pack_experts(folder, target, progress=False)
    assert any(target.glob("*.zarr/c/0/*/0"))
    with pytest.raises(CheckpointError, match=r"has no experts\.json"):
        OptimizedMoEModel.from_pretrained(folder, experts=target)
    pack_experts(folder, target, progress=False)
    model = OptimizedMoEModel.from_pretrained(folder, experts=target)
    assert torch.equal(model(IDS).logits, wanted)
    model.close()
    before = {it: it.stat().st_mtime_ns for it in target.rglob("*")}
    with pytest.raises(CheckpointError, match="has a store of experts already"):
        pack_experts(folder, target, progress=False)
    assert {it: it.stat().st_mtime_ns for it in target.rglob("*")} == before


def test_experts_of_zeros_are_stored(tmp_path: Path) -> None:
    folder = save_model("mixtral", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    zeros = {
        name: torch.zeros_like(it) if ".experts.5." in name else it for name, it in tensors.items()
    }
    save_file(zeros, folder / "model.safetensors", {"format": "pt"})
    pack_experts(folder, tmp_path / "store", progress=False)
    store = ZarrStore(str(tmp_path / "store"), folder)
    memory = torch.ones(store.nbytes, dtype=torch.uint8)
    store.read_into((1, 5), memoryview(memory.numpy()))
    assert not memory.any()


def test_other_experts_of_the_same_model_are_refused(
    folder: Path, packed: Path, tmp_path: Path
) -> None:
    later = tmp_path / "later"
    later.mkdir()
    (later / "config.json").write_bytes((folder / "config.json").read_bytes())
    tensors = load_file(folder / "model.safetensors")
    name = next(it for it in tensors if ".experts.3." in it)
    save_file({**tensors, name: tensors[name] + 1}, later / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"another model .* digest of the experts"):
        OptimizedMoEModel.from_pretrained(later, experts=packed)


def change(store: Path, **fields: Any) -> None:
    about = store / "experts.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), **fields}))


def test_a_description_that_lies_is_refused(folder: Path, packed: Path) -> None:
    text = (packed / "experts.json").read_text()
    for fields in (
        {"format": "another"},
        {"layers": [0]},
        {"experts": 10**15},
        {"experts": -1},
        {"shapes": [[2**39, 2**39], [1, 1]]},
        {"shapes": [[1, 2, 3], [1, 1]]},
        {"shapes": 4},
        {"dtype": "I8"},
        {"dtype": ["BF16"]},
        {"experts_digest": "../../other"},
        {"more": 1},
    ):
        change(packed, **fields)
        with pytest.raises(CheckpointError):
            ZarrStore(str(packed), folder)
        (packed / "experts.json").write_text(text)
    (packed / "experts.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"experts\.json cannot be read"):
        ZarrStore(str(packed), folder)


def test_an_array_of_another_layout_or_a_pipe_is_refused(folder: Path, packed: Path) -> None:
    (array,) = packed.glob("*.zarr/zarr.json")
    text = array.read_text()
    array.write_text(text.replace('"crc32c"', '"gzip"'))
    with pytest.raises(CheckpointError, match="cannot be opened"):
        ZarrStore(str(packed), folder)
    array.write_text(text)
    one = chunk(packed, 0, 0)
    data = one.read_bytes()
    os.truncate(one, 2**32)
    with pytest.raises(CheckpointError, match="has more bytes than an expert"):
        ZarrStore(str(packed), folder)
    one.unlink()
    os.mkfifo(one)
    with pytest.raises(CheckpointError, match="is no regular file"):
        ZarrStore(str(packed), folder)
    one.unlink()
    one.write_bytes(data)
    ZarrStore(str(packed), folder)


def test_mistakes_are_answered_in_a_paragraph(folder: Path, packed: Path, tmp_path: Path) -> None:
    dense = save_model("llama", tmp_path / "dense")
    other = save_model("mixtral", tmp_path / "other")
    load = OptimizedMoEModel.from_pretrained
    for call, said in (
        (lambda: load(folder, experts="ftp://host/a"), "must be a folder, or begin with file://"),
        (lambda: load(folder, experts=tmp_path / "none"), "has no experts.json"),
        (lambda: load(other, experts=packed), "has the experts of another model than"),
        (lambda: load(dense, experts=packed), "has the experts of another model than"),
        (lambda: pack_experts(dense, tmp_path / "a"), "a model without experts"),
        (lambda: pack_experts(folder, folder), "the source"),
        (lambda: pack_experts(folder, "s3://"), "experts cannot be kept at 's3://'"),
        (lambda: pack_experts(folder, "/proc/none"), "cannot be written"),
    ):
        with pytest.raises(MoEError) as error:
            call()
        assert said in str(error.value)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "a").exists()


def test_a_store_of_ones_own_is_one_function(folder: Path, wanted: torch.Tensor) -> None:
    from moe_megatron.inference.store import opening
    from moe_megatron.inference.store.hugging_face import HuggingFaceStore

    seen = []

    @register_store("elsewhere")
    def elsewhere(address: str, model: Path) -> ExpertStore:
        seen.append(address)
        return HuggingFaceStore(model)

    try:
        model = OptimizedMoEModel.from_pretrained(folder, experts="elsewhere://here")
        assert torch.equal(model(IDS).logits, wanted)
        assert seen == ["elsewhere://here"]
        model.close()
    finally:
        del opening._STORES["elsewhere"]
    with pytest.raises(ConfigError):
        OptimizedMoEModel.from_pretrained(folder, experts="elsewhere://here")
