"""Tensors are written for those to whom the umask gives a new file."""

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from moe_megatron import MoEModel
from moe_megatron.tensor_file import save_tensors

PACKAGE = Path(__file__).parents[2] / "moe_megatron"


@pytest.fixture
def group_reads() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.usefixtures("group_reads")
def test_permissions_are_those_of_other_new_files(tmp_path: Path) -> None:
    file = tmp_path / "some.safetensors"
    save_tensors({"a": torch.arange(3)}, file, {"format": "pt"})
    assert mode_of(file) == 0o640
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}
        assert torch.equal(opened.get_tensor("a"), torch.arange(3))
    file.chmod(0o604)
    save_tensors({"b": torch.ones(2)}, file)
    assert mode_of(file) == 0o604, "of the file that it replaces"
    model = MoEModel(hidden_size=16, num_experts=2, num_layers=1, vocab_size=131)
    model.save_pretrained(tmp_path / "model")
    assert {mode_of(it) for it in (tmp_path / "model").iterdir()} == {0o640}


def test_every_module_writes_tensors_so() -> None:
    writers = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "safetensors.torch"
        if any(alias.name == "save_file" for alias in node.names)
        if not path.is_relative_to(PACKAGE / "testing")
    }
    assert writers == {"tensor_file.py"}
