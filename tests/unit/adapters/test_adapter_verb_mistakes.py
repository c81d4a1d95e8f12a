"""What `moe-megatron adapter` answers to mistakes: one paragraph, and no file is touched."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moe_megatron import MoEModel
from moe_megatron.adapters.base_hash import hash_of_folder
from moe_megatron.adapters.hf_layouts import layouts_of_folder
from moe_megatron.adapters.low_rank import LowRank
from moe_megatron.adapters.model_adapters import ModelAdapters
from moe_megatron.adapters.peft_folder import CONFIG, NOTE, WEIGHTS, write_folder
from moe_megatron.adapters.to_peft import to_peft
from moe_megatron.testing import tiny_models
from tests.unit.mistakes import (
    assert_answered_in_python,
    assert_answered_on_the_command_line,
    content_of,
)

MATRIX = "decoder.layers.0.mlp.experts.local_experts.0.linear_fc1.weight"


def change_json(name: str, **values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def not_a_number(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors[next(iter(tensors))].view(-1)[0] = float("nan")
    save_file(tensors, folder / WEIGHTS)


def cut_short(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


@pytest.fixture
def place(draw, tmp_path, monkeypatch) -> Path:
    """A model, its adapter, spoiled copies of that, and what is no adapter."""
    monkeypatch.chdir(tmp_path)
    tiny_models.save("qwen3_moe", tmp_path / "model", fused=False)
    fused = layouts_of_folder(tmp_path / "model").fused
    spoiled: dict[str, Callable[[Path], None]] = {
        "mine": lambda _: None,
        "nan": not_a_number,
        "cut": cut_short,
        "ia3": change_json(CONFIG, peft_type="IA3"),
        "strange": change_json(NOTE, base="sha256:" + "0" * 64),
    }
    for name, spoil in spoiled.items():
        adapter = to_peft(draw(fused), fused, is_moe=True)
        write_folder(tmp_path / name, adapter, hash_of_folder(tmp_path / "model"))
        spoil(tmp_path / name)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    return tmp_path


MISTAKES = {
    "merge model new --adapter nan": (
        r"adapter of decoder.layers.0.* in nan holds numbers that are not finite .* Take an earlier"
    ),
    "merge model new --adapter cut": "cut/adapter_model.safetensors: .* it is truncated",
    "merge model new --adapter ia3": r"of the kind IA3, but only low-rank adapters \(LORA\)",
    "merge model new --adapter strange": "trained on another base: .* sha256:00.* Give the model",
    "merge model new --adapter model": "model holds no adapter_config.json; give the folder of an",
    "merge model new --adapter nowhere": "nowhere holds no adapter_config.json",
    "merge model new": r"is no checkpoint of a run, so it holds no adapter; .* \(--adapter\)",
    "merge ./nowhere new --adapter mine": "./nowhere is neither a folder nor a Hub id",
    "merge mine new --adapter mine": "it holds an adapter .LoRA., which is nothing without its ba",
    "merge model full --adapter mine": r"full exists and is not empty; choose another folder\.$",
    "merge model mine --adapter mine": r"mine exists and is not empty; choose another folder\.$",
    "merge model model --adapter mine": "the destination model is the source",
    "merge model full/mine.txt --adapter mine": "full/mine.txt is a file; give the name of a fol",
    "export model new": "holds no finished Megatron checkpoint",
    "export model full": r"full exists and is not empty; choose another folder\.$",
    "inspect ia3": r"of the kind IA3, but only low-rank adapters \(LORA\)",
    "inspect cut": "it is truncated",
    "inspect nowhere": "nowhere holds no adapter: it has no adapter_config.json, and is no checkpo",
    "inspect model": "model holds no adapter: .* Give a folder in PEFT's format, or a run with ada",
}


def test_mistakes_with_adapters_are_answered_and_touch_nothing(place, capsys):
    before = content_of(place)
    for words, expected in MISTAKES.items():
        assert_answered_on_the_command_line(f"adapter {words}", expected, capsys)
        assert content_of(place) == before, words


def test_an_adapter_that_is_not_finite_or_none_is_not_added():
    model = MoEModel(hidden_size=16, num_layers=2, num_experts=4, vocab_size=64)
    adapters = ModelAdapters(model)
    spoiled = LowRank(torch.full((2, 16), float("inf")), torch.zeros(32, 2), 1.0)
    for given, expected in (
        ({MATRIX: spoiled}, "in 'mine' holds numbers that are not finite"),
        (None, "an adapter is needed, not NoneType; give that of a MoELoRA"),
    ):
        assert_answered_in_python(lambda it=given: adapters.add("mine", it), expected)
    assert adapters.names == ()
