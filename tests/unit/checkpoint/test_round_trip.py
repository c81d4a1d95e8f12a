"""Hugging Face to Megatron and back: every tensor bit by bit, and what lies beside them."""

import json
from itertools import product
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor, equal

from moe_megatron.checkpoint.convert import Execution, export_checkpoint, import_checkpoint
from moe_megatron.testing.tiny_models import EXAMPLES, save
from tests.examples import FEW, FIRST, deep_but

QUIET = Execution(progress=False)


def tensors(folder: Path) -> dict[str, Tensor]:
    return {
        name: value
        for file in folder.glob("*.safetensors")
        for name, value in load_file(file).items()
    }


@pytest.mark.parametrize(
    ("name", "fused"),
    deep_but([*product(FIRST, [False]), *product(FEW, [True])], product(EXAMPLES, [False, True])),
)
def test_every_family_returns_bit_by_bit(name: str, fused: bool, tmp_path: Path) -> None:
    save(name, tmp_path / "source", fused=fused)
    (tmp_path / "source" / "tokenizer.json").write_text("{}")
    import_checkpoint(tmp_path / "source", tmp_path / "megatron", execution=QUIET)
    export_checkpoint(tmp_path / "megatron", tmp_path / "back", execution=QUIET)
    before, after = tensors(tmp_path / "source"), tensors(tmp_path / "back")
    assert before.keys() == after.keys()
    for tensor, value in before.items():
        assert value.dtype == after[tensor].dtype, tensor
        assert equal(value, after[tensor]), tensor
    configs = [json.loads((tmp_path / f / "config.json").read_text()) for f in ("source", "back")]
    assert configs[0] == configs[1]
    assert (tmp_path / "back" / "tokenizer.json").read_text() == "{}"


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "deepseek_v3"])
def test_layouts_of_experts_can_be_exchanged(name: str, tmp_path: Path) -> None:
    for fused in (False, True):
        save(name, tmp_path / f"{fused}", fused=fused)
    import_checkpoint(tmp_path / "False", tmp_path / "megatron", execution=QUIET)
    export_checkpoint(tmp_path / "megatron", tmp_path / "back", fused=True, execution=QUIET)
    expected, found = tensors(tmp_path / "True"), tensors(tmp_path / "back")
    assert expected.keys() == found.keys()
    assert all(equal(value, found[tensor]) for tensor, value in expected.items())
