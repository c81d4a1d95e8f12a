"""A run that loads a checkpoint of a stranger runs none of the stranger's code."""

import os
import pickle
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from moe_megatron.errors import CheckpointError
from moe_megatron.testing.distributed import run_distributed
from moe_megatron.testing.jobs import Job, run_on_this_rank

pytestmark = pytest.mark.distributed

SHAPE: dict[str, Any] = {
    "training.train_steps": 2,
    "training.warmup_steps": 0,
    "checkpoint.save_interval": 2,
}
CALLS: dict[str, Any] = {
    "posix.system": lambda mark: (os.system, (f"touch {mark}",)),
    "shutil.copyfile": lambda mark: (shutil.copyfile, (__file__, str(mark))),
}
"""By the name of the function, which torch blocks by module, or does not know."""


class Payload:
    """Makes a call when it is unpickled."""

    def __init__(self, call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "run"
    run_distributed(run_on_this_rank, [Job(run_dir=folder, overrides=SHAPE)], world_size=1)
    return folder / "checkpoints"


@pytest.fixture
def checkpoint(good: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    return Path(shutil.copytree(good, tmp_path / "checkpoints"))


def in_metadata(checkpoint: Path, payload: Payload) -> None:
    """The description of the checkpoint is the code."""
    (checkpoint / "iter_0000002" / ".metadata").write_bytes(pickle.dumps(payload))


def in_an_object(checkpoint: Path, payload: Payload) -> None:
    """Every object that is no tensor is the code; its place in the file is enough for it."""
    (file,) = (checkpoint / "iter_0000002").glob("*.distcp")
    metadata = pickle.loads((checkpoint / "iter_0000002" / ".metadata").read_bytes())
    hostile, content = BytesIO(), bytearray(file.read_bytes())
    torch.save(payload, hostile)
    objects = [
        index
        for index in metadata.storage_data
        if isinstance(metadata.state_dict_metadata[index.fqn], BytesStorageMetadata)
    ]
    assert objects
    for index in objects:
        place = metadata.storage_data[index]
        place.offset, place.length = len(content), len(hostile.getvalue())
        content += hostile.getvalue()
    file.write_bytes(content)
    (checkpoint / "iter_0000002" / ".metadata").write_bytes(pickle.dumps(metadata))


def load(checkpoint: Path, run_dir: Path) -> str:
    """On a rank: what a run that loads the checkpoint says."""
    overrides = {**SHAPE, "training.train_steps": 4, "checkpoint.load": str(checkpoint)}
    try:
        run_on_this_rank([Job(run_dir=run_dir, overrides=overrides)])
    except CheckpointError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("function", CALLS)
@pytest.mark.parametrize("spoil", [in_metadata, in_an_object])
def test_code_in_a_checkpoint_is_refused_and_does_not_run(
    spoil: Any, function: str, checkpoint: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    spoil(checkpoint, Payload(CALLS[function](mark)))
    (message,) = run_distributed(load, checkpoint, tmp_path / "run", world_size=1)
    assert not mark.exists()
    assert f" names {function}, which no Megatron checkpoint needs" in message


def test_what_megatron_saved_is_read(checkpoint: Path, tmp_path: Path) -> None:
    assert run_distributed(load, checkpoint, tmp_path / "run", world_size=1) == [""]
