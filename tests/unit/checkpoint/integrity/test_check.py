"""Every changed byte of a folder is noticed and named, by one reader or by several."""

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint

from moe_megatron.checkpoint.convert import Execution, import_checkpoint
from moe_megatron.checkpoint.formats.torch_dist import TorchDist
from moe_megatron.checkpoint.integrity.check import Finding, check_folder
from moe_megatron.checkpoint.integrity.manifest import MANIFEST, Manifest, write_manifest
from moe_megatron.checkpoint.integrity.seal import seal, seal_together, unseal
from moe_megatron.testing.tiny_models import save

WEIGHTS = "__0_0.distcp"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sealed")
    save("mixtral", root / "hf", fused=False)
    import_checkpoint(root / "hf", root / "megatron", execution=Execution(progress=False))
    return root / "megatron" / "release"


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A valid checkpoint to damage."""
    shutil.copytree(original, tmp_path / "release")
    return tmp_path / "release"


def flip(path: Path, byte: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(byte)
        (value,) = file.read(1)
        file.seek(byte)
        file.write(bytes([value ^ 1 << bit]))


def test_untouched_folder_is_valid(folder: Path) -> None:
    found = check_folder(folder)
    assert (found.state, found.problems) == ("valid", ())
    assert found.blocks


def test_flipped_bit_names_the_tensor_alone_though_others_share_its_block(tmp_path: Path) -> None:
    tensors = {f"optimizer.state.{name}": torch.rand(100, 10) for name in ("exp_avg", "a", "b")}
    torch.distributed.checkpoint.save(tensors, checkpoint_id=tmp_path, no_dist=True)
    (tmp_path / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    seal(tmp_path)
    with TorchDist(tmp_path) as saved:
        tensor = saved.tensors["optimizer.state.exp_avg"]
        offset = saved.data_offset(tensor, tensor.chunks[0])
    flip(tmp_path / WEIGHTS, offset + 5)
    found = check_folder(tmp_path)
    assert found.state == "damaged"
    (problem,) = found.problems
    assert problem.startswith(f"{tmp_path / WEIGHTS} is damaged between bytes 0 and ")
    assert problem.endswith(", in optimizer.state.exp_avg.")


def test_tensors_without_checksums_of_their_own_are_named_together(folder: Path) -> None:
    flip(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size // 2)
    assert ", in decoder." in check_folder(folder).reason
    assert "and 8 more" in check_folder(folder).reason


@pytest.mark.parametrize(
    "name", [".metadata", "metadata.json", "config.yaml", MANIFEST, "hf/config.json", WEIGHTS]
)
@pytest.mark.parametrize("where", [0, 0.37, 1])
def test_flipped_bit_of_any_file_is_noticed(name: str, where: float, folder: Path) -> None:
    size = (folder / name).stat().st_size
    flip(folder / name, int((size - 1) * where), 3)
    found = check_folder(folder)
    assert found.state == "damaged"
    assert name in found.reason


def test_every_bit_of_a_manifest_counts(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    seal(tmp_path, notes={"step": 3})
    whole = (tmp_path / MANIFEST).read_bytes()
    for position in range(len(whole)):
        for bit in range(8):
            flip(tmp_path / MANIFEST, position, bit)
            assert check_folder(tmp_path).state == "damaged", (position, bit)
            flip(tmp_path / MANIFEST, position, bit)
    assert check_folder(tmp_path).state == "valid"


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


@pytest.mark.parametrize(
    ("harm", "said"),
    [(truncate, "is truncated: "), (append, "has grown: "), (os.unlink, "is missing.")],
)
@pytest.mark.parametrize("name", [WEIGHTS, ".metadata", "config.yaml"])
def test_size_and_absence_are_noticed(
    harm: Callable[[Path], None], said: str, name: str, folder: Path
) -> None:
    harm(folder / name)
    found = check_folder(folder)
    assert found.state == "damaged"
    assert f"{folder / name} {said}" in found.problems[0]


def test_files_of_equal_size_that_changed_places_are_noticed(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode() * 600_000)
    seal(tmp_path)
    (tmp_path / "a").rename(tmp_path / "c")
    (tmp_path / "b").rename(tmp_path / "a")
    (tmp_path / "c").rename(tmp_path / "b")
    problems = check_folder(tmp_path).problems
    assert [p.split(" is damaged")[0] for p in problems] == [str(tmp_path / n) for n in "ab"]
    assert "bytes 0 and 600,000" in problems[0], "neighbouring blocks are one sentence"


def test_file_that_a_run_would_read_if_it_were_there_may_not_be_added(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    assert check_folder(folder).state == "valid"
    (folder / "common.pt").write_bytes(b"x")
    assert "common.pt was added after the checksums" in check_folder(folder).reason


def test_manifest_that_lies_is_noticed(folder: Path) -> None:
    for name in ("../outside", "/etc/hostname"):
        write_manifest(folder, Manifest(files={name: ((1, "0"),)}))
        assert "which is not in its folder" in check_folder(folder).reason
    write_manifest(folder, Manifest(files={WEIGHTS: ((5, "0"),)}))
    assert "has grown" in check_folder(folder).reason
    body = json.dumps({"version": 1, "algorithm": "later", "notes": {}, "files": {}})
    (folder / MANIFEST).write_text(json.dumps({"digest": "0", "content": body}))
    assert "checksums of the kind later, which needs a package" in check_folder(folder).reason


def test_folder_without_a_manifest_is_unverified_as_long_as_its_sizes_fit(folder: Path) -> None:
    unseal(folder)
    found = check_folder(folder)
    assert (found.state, found.blocks) == ("unverified", None)
    assert "it has no checksums.json" in found.reason
    os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size // 2)
    assert "the file is truncated" in check_folder(folder).reason
    (folder / ".metadata").unlink()
    found = check_folder(folder)
    assert found.state == "damaged"
    assert "is incomplete: .metadata is missing, so its save was cut short" in found.reason


def test_readers_that_share_the_work_find_what_one_finds(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(2_000_000))
    seal(tmp_path)
    for byte in (0, 600_000, 1_300_000):
        flip(tmp_path / "a", byte)
    alone = check_folder(tmp_path).problems
    shared = [check_folder(tmp_path, part=part, parts=3).problems for part in range(3)]
    assert len(alone) == 3
    assert sorted(problem for problems in shared for problem in problems) == sorted(alone)


def test_ranks_vouch_together_for_what_each_wrote(tmp_path: Path) -> None:
    for name in ("__0_0.distcp", "__1_0.distcp", "__2_0.distcp", "__9_0.distcp", "config.yaml"):
        (tmp_path / name).write_bytes(name.encode())
    assert not seal_together(tmp_path, 2, 3)
    assert not seal_together(tmp_path, 1, 3)
    assert seal_together(tmp_path, 0, 3, notes={"step": 7})
    assert check_folder(tmp_path) == Finding(tmp_path, "valid", (), 5)
    left = {path.name for path in tmp_path.iterdir()}
    assert MANIFEST in left
    assert not any(name.startswith(".checksums") for name in left)


def test_rank_that_never_reports_leaves_the_folder_unverified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moe_megatron.checkpoint.integrity import seal as sealing
    from moe_megatron.errors import CheckpointError

    monkeypatch.setattr(sealing, "PATIENCE_SECONDS", 0.0)
    (tmp_path / "__1_0.distcp").write_bytes(b"1")
    with pytest.raises(CheckpointError, match=r"gets no checksums: .* did not appear"):
        seal_together(tmp_path, 0, 2)
    assert not (tmp_path / MANIFEST).exists()


def test_rank_without_room_for_its_checksums_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moe_megatron.checkpoint.integrity import seal as sealing
    from moe_megatron.errors import CheckpointError

    def full(path: Path, chunks: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "__1_0.distcp").write_bytes(b"1")
    with monkeypatch.context() as patch:
        patch.setattr(sealing, "replace_file", full)
        with pytest.raises(OSError, match="No space left"):
            seal_together(tmp_path, 1, 2)
    with pytest.raises(CheckpointError, match="of another rank holds no checksums"):
        seal_together(tmp_path, 0, 2)
    assert not (tmp_path / MANIFEST).exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_checksums_wait_for_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    from moe_megatron.checkpoint.integrity import manifest
    from moe_megatron.checkpoint.integrity import seal as sealing

    writes = []

    def full_at_first(path: Path, chunks: list[bytes]) -> None:
        writes.append(path)
        if len(writes) < 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        path.write_bytes(b"".join(chunks))

    monkeypatch.setattr(sealing, "_PAUSE_SECONDS", 0.0)
    for name in ("__0_0.distcp", "__1_0.distcp"):
        (tmp_path / name).write_bytes(name.encode())
    for own in (1, 0):
        with monkeypatch.context() as patch:
            if own == rank:
                for module in (sealing, manifest):
                    patch.setattr(module, "replace_file", full_at_first)
            seal_together(tmp_path, own, 2, patience=60.0)
    assert len(writes) == 3
    assert check_folder(tmp_path) == Finding(tmp_path, "valid", (), 2)


def test_nobody_waits_for_checksums_that_find_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moe_megatron.checkpoint.integrity import manifest

    def full(path: Path, chunks: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(manifest, "replace_file", full)
    (tmp_path / "__0_0.distcp").write_bytes(b"0")
    hurry = threading.Event()
    threading.Timer(0.2, hurry.set).start()
    with pytest.raises(OSError, match="No space left"):
        seal_together(tmp_path, 0, 1, patience=600.0, hurry=hurry)
