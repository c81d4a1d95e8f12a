"""More experts than a disk can hold are refused before they are planned."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemWriter

from moe_megatron.checkpoint.convert import Execution, import_checkpoint
from moe_megatron.checkpoint.edit.pool_change import Grow
from moe_megatron.checkpoint.edit.upcycle import Upcycling
from moe_megatron.checkpoint.execute.publish import staging_of
from moe_megatron.checkpoint.execute.room import check_room
from moe_megatron.checkpoint.resize import change_experts
from moe_megatron.config import dump_yaml, load_config
from moe_megatron.errors import CheckpointError
from moe_megatron.testing.tiny_models import save

HUGE = 10**12
REFUSED = rf"^{HUGE:,} experts in each layer take [\d,.]+ GB or more, .* Give a smaller number"


def test_upcycling_to_very_many_experts_is_refused_at_once(tmp_path: Path) -> None:
    save("llama", tmp_path / "dense", fused=False)
    for execution in (Execution(progress=False), Execution(dry_run=True)):
        with pytest.raises(CheckpointError, match=REFUSED):
            import_checkpoint(
                tmp_path / "dense",
                tmp_path / "made",
                upcycling=Upcycling(num_experts=HUGE),
                execution=execution,
            )
    assert not (tmp_path / "made").exists()


def test_growing_to_very_many_experts_is_refused_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "iter_0000007"
    key = "decoder.layers.mlp.experts.experts.linear_fc1.weight"
    tensors = {key: torch.zeros(2, 4, 8, 8), f"optimizer.state.exp_avg.{key}": torch.zeros(2, 4, 8)}
    dcp.save(tensors, storage_writer=FileSystemWriter(folder), no_dist=True)
    backend = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
    (folder / "metadata.json").write_text(json.dumps(backend))
    (folder / "config.yaml").write_text(dump_yaml(load_config("test_tiny")))
    one = (2 * 8 * 8 + 2 * 8) * 4
    with pytest.raises(CheckpointError, match=REFUSED) as error:
        change_experts(folder, tmp_path / "grown", Grow(num_experts=HUGE))
    assert f"take {HUGE * one / 1e9:,.2f} GB" in str(error.value)
    assert not (tmp_path / "grown").exists()


def test_room_is_what_is_free_and_what_an_earlier_attempt_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    made = tmp_path / "no" / "folder"
    check_room(made, 10, 100)
    with pytest.raises(CheckpointError, match=r"11 experts .* on another disk\.$"):
        check_room(made, 11, 100)
    staging_of(made).mkdir(parents=True)
    (staging_of(made) / "part").write_bytes(bytes(100))
    check_room(made, 11, 100)
