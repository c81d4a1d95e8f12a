"""What a model folder must not be: links to other people's files, notes of Git LFS, odd names."""

import json
import os
import shutil
from pathlib import Path

import pytest

from moe_megatron.checkpoint.convert import Execution, export_checkpoint, import_checkpoint
from moe_megatron.checkpoint.formats.hf_folder import HfFolder
from moe_megatron.checkpoint.formats.own_files import given_folder
from moe_megatron.checkpoint.formats.side_files import to_megatron
from moe_megatron.errors import CheckpointError

QUIET = Execution(progress=False)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
FILES = ("config.json", "model.safetensors", "generation_config.json")


@pytest.fixture
def source(mixtral: Path, tmp_path: Path) -> Path:
    """A copy of the model that a test may change."""
    return Path(shutil.copytree(mixtral, tmp_path / "models" / "source"))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("same_name", [True, False])
def test_file_that_is_a_link_to_elsewhere_is_not_read(
    name: str, same_name: bool, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "private").mkdir()
    elsewhere = tmp_path / "private" / (name if same_name else "secret")
    (source / name).rename(elsewhere)
    (source / name).symlink_to(elsewhere)
    if name == "config.json" and same_name:
        HfFolder(source)  # a view of the model there
        return
    with pytest.raises(CheckpointError, match=r"is a link to .*, which is not in the model's"):
        to_megatron(HfFolder(source).path)


def test_folder_of_links_to_one_model_is_that_model(source: Path, tmp_path: Path) -> None:
    view = tmp_path / "view"
    view.mkdir()
    for file in source.iterdir():
        (view / file.name).symlink_to(file)
    assert HfFolder(view).tensors.keys() == HfFolder(source).tensors.keys()
    assert to_megatron(view)


def test_cache_of_the_hub_is_read_through_its_links(source: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "cache" / "snapshots" / "abc"
    (tmp_path / "cache" / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(source.iterdir())):
        file.rename(tmp_path / "cache" / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    import_checkpoint(snapshot, tmp_path / "out", execution=QUIET)
    assert (tmp_path / "out" / "release" / "hf" / "generation_config.json").is_file()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_note_of_git_lfs_says_what_to_do(name: str, source: Path) -> None:
    (source / name).write_bytes(POINTER)
    with pytest.raises(CheckpointError, match=r"is a note of Git LFS .*'git lfs pull'"):
        HfFolder(source)


@pytest.mark.parametrize("kind", ["pipe", "folder", "circle"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_what_is_no_file_is_not_waited_for(kind: str, name: str, source: Path) -> None:
    path = source / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path)
    with pytest.raises(CheckpointError, match=r"cannot be (read|followed)|holds no config"):
        HfFolder(source)


@pytest.mark.parametrize("where", ["tensor", "shard", "tensor of the index"])
def test_name_of_5000_characters_is_refused_in_few(where: str, source: Path) -> None:
    name = "n" * 5000
    entry = {name: "model.safetensors"} if where.startswith("tensor of") else {"x": name}
    if where == "tensor":
        header = json.dumps({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})
        data = len(header).to_bytes(8, "little") + header.encode() + bytes(4)
        (source / "model.safetensors").write_bytes(data)
    else:
        index = source / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": entry}))
    with pytest.raises(CheckpointError, match="n" * 40 + r".*\.\.\.") as raised:
        HfFolder(source)
    assert len(str(raised.value)) < 600


def test_folder_with_a_name_of_5000_characters_is_refused(imported: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"5,000 characters\) cannot be a folder \(File name"):
        given_folder("n" * 5000)
    with pytest.raises(CheckpointError, match="cannot be a folder"):
        export_checkpoint(imported, tmp_path / ("n" * 5000), execution=QUIET)


@pytest.mark.parametrize("destination", [".", "/", "..", "x/.."])
def test_destination_without_a_name_is_refused(destination: str, source: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no name of its own|contains the source"):
        import_checkpoint(source, destination, execution=QUIET)


@pytest.mark.parametrize("up", [0, 1])
def test_destination_that_would_replace_the_source_is_refused(
    up: int, source: Path, imported: Path
) -> None:
    overwriting = Execution(progress=False, overwrite=True)
    for convert, given in ((import_checkpoint, source), (export_checkpoint, imported)):
        target = [given, *given.parents][up]
        with pytest.raises(CheckpointError, match=r"(is|contains) the source; choose another"):
            convert(given, target, execution=overwriting)
        assert given.is_dir()
