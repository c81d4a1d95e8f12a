"""Two checkpoints are equal when every tensor is, to the bit; objects beside them do not count."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import FileSystemWriter

from moe_megatron.chaos.equality import different_tensors

MOMENT = "optimizer.state.exp_avg.output_layer.weight"


def _save(folder: Path, tensors: dict[str, Tensor]) -> Path:
    dcp.save(tensors, storage_writer=FileSystemWriter(folder), no_dist=True)
    (folder / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist"}))
    return folder


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    names = ("output_layer.weight", MOMENT)
    return {name: torch.randn(8, 16, generator=generator) for name in names}


def test_equal_tensors_in_other_files_are_equal(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    ours = _save(tmp_path / "a", tensors)
    theirs = _save(tmp_path / "b", {key: tensors[key].clone() for key in reversed(tensors)})
    assert different_tensors(ours, theirs) == []


def test_one_bit_of_the_optimizer_is_a_difference(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    ours = _save(tmp_path / "a", tensors)
    tensors[MOMENT].view(torch.int32)[3, 5] ^= 1
    assert different_tensors(ours, _save(tmp_path / "b", tensors)) == [MOMENT]


def test_a_missing_tensor_is_a_difference(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    ours = _save(tmp_path / "a", tensors)
    del tensors[MOMENT]
    assert different_tensors(ours, _save(tmp_path / "b", tensors)) == [MOMENT]
