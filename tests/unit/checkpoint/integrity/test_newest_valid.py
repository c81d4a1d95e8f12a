"""The newest valid checkpoint is chosen; damaged ones are named, and set aside where ours."""

import os
import re
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint

from moe_megatron.checkpoint.integrity.check import check_folder
from moe_megatron.checkpoint.integrity.newest_valid import (
    Chosen,
    candidates,
    choose,
    repair_tracker,
    sealed,
    set_aside,
)
from moe_megatron.checkpoint.integrity.seal import seal, unseal
from moe_megatron.errors import CheckpointError

TRACKER = "latest_checkpointed_iteration.txt"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Checkpoints of steps 2, 4 and 6."""
    for step in (2, 4, 6):
        folder = tmp_path / f"iter_{step:07d}"
        tensors = {"weight": torch.full((1000,), float(step))}
        torch.distributed.checkpoint.save(tensors, checkpoint_id=folder, no_dist=True)
        (folder / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
        seal(folder)
    (tmp_path / TRACKER).write_text("6")
    return tmp_path


def step(root: Path, number: int) -> Path:
    return root / f"iter_{number:07d}"


def harm(folder: Path) -> None:
    with (folder / "__0_0.distcp").open("r+b") as file:
        file.seek(2000)
        file.write(b"\x55")


def choice(root: Path, *, fallback: bool = True) -> Chosen:
    folders = candidates(root)
    return choose(folders, sealed(folders), check_folder, fallback=fallback)


def names(root: Path) -> list[str]:
    return [path.name for path in candidates(root)]


def test_newest_valid_one_is_chosen_and_nothing_changes(root: Path) -> None:
    chosen = choice(root)
    assert chosen.found.folder == step(root, 6)
    assert chosen.passed_over == ()
    before = sorted(os.listdir(root))
    set_aside(chosen)
    assert sorted(os.listdir(root)) == before


def test_damaged_one_is_renamed_and_the_tracker_names_the_one_before(root: Path) -> None:
    harm(step(root, 6))
    chosen = choice(root)
    assert chosen.found.folder == step(root, 4)
    assert [found.folder for found in chosen.passed_over] == [step(root, 6)]
    assert "is damaged between bytes" in chosen.passed_over[0].reason
    assert "weight" in chosen.passed_over[0].reason
    set_aside(chosen)
    assert (root / "iter_0000006.damaged" / "__0_0.distcp").exists()
    assert (root / TRACKER).read_text() == "4"
    assert names(root) == ["iter_0000004", "iter_0000002"]


def test_second_damage_at_a_step_gets_a_name_of_its_own(root: Path) -> None:
    (root / "iter_0000006.damaged").mkdir()
    harm(step(root, 6))
    set_aside(choice(root))
    assert (root / "iter_0000006.damaged-2" / ".metadata").exists()


def test_older_valid_one_is_preferred_to_a_newer_one_without_checksums(root: Path) -> None:
    unseal(step(root, 6))
    chosen = choice(root)
    assert chosen.found.folder == step(root, 4)
    assert chosen.passed_over[0].state == "unverified"
    set_aside(chosen)
    assert step(root, 6).exists(), "it is not damaged"
    assert (root / TRACKER).read_text() == "4"


def test_checkpoints_of_older_versions_can_be_loaded(root: Path) -> None:
    for number in (2, 4, 6):
        unseal(step(root, number))
    assert choice(root).found.folder == step(root, 6)
    os.truncate(step(root, 6) / "__0_0.distcp", 100)
    assert choice(root).found.folder == step(root, 4)


def test_where_none_can_be_used_each_is_listed_with_its_damage(root: Path) -> None:
    harm(step(root, 6))
    unseal(step(root, 4))
    (step(root, 4) / ".metadata").unlink()
    (step(root, 2) / "__0_0.distcp").unlink()
    with pytest.raises(CheckpointError, match=re.escape(f"{root} holds no checkpoint that")) as no:
        choice(root)
    lines = str(no.value).splitlines()
    assert re.fullmatch(r"  iter_0000006: .* is damaged between bytes .*", lines[1])
    assert re.fullmatch(r"  iter_0000004: .* is incomplete: .*", lines[2])
    assert re.fullmatch(r"  iter_0000002: .*__0_0.distcp is missing\.", lines[3])
    assert lines[4] == "Restore a copy of one, or start anew without --load."


def test_without_fallback_a_damaged_newest_one_is_an_error(root: Path) -> None:
    assert choice(root, fallback=False).found.folder == step(root, 6)
    harm(step(root, 6))
    with pytest.raises(CheckpointError, match="fallback is off; set it to true to go on from"):
        choice(root, fallback=False)


@pytest.mark.parametrize("content", [None, b"soon", b"\xff", b"", b"9"])
def test_tracker_that_names_no_checkpoint_is_replaced_by_a_look_at_the_folders(
    content: bytes | None, root: Path
) -> None:
    (root / TRACKER).unlink()
    if content is not None:
        (root / TRACKER).write_bytes(content)
    chosen = choice(root)
    assert chosen.found.folder == step(root, 6)
    repair_tracker(chosen)
    assert not (root / TRACKER).exists() or (root / TRACKER).read_bytes() in (b"6", b"9")
    set_aside(chosen)
    assert (root / TRACKER).read_text() == "6"


def test_tracker_that_names_an_older_step_is_obeyed(root: Path) -> None:
    (root / TRACKER).write_text("4\n")
    assert names(root) == ["iter_0000004", "iter_0000002"]


def test_converted_checkpoint_is_found_by_its_name(root: Path) -> None:
    (root / "release").mkdir()
    (root / TRACKER).write_text("release")
    assert names(root) == ["release"]
    (root / TRACKER).unlink()
    assert names(root)[-1] == "release"
    assert candidates(root / "nowhere") == []


def test_folder_that_cannot_be_changed_is_told_and_left(
    root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    harm(step(root, 6))
    chosen = choice(root)
    monkeypatch.setattr(Path, "rename", refuse)
    set_aside(chosen)
    assert f"{step(root, 6)} cannot be changed: Permission denied" in caplog.text
