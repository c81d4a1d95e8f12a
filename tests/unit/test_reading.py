"""Links in a folder that somebody else made: one rule for models and their tokenizers."""

from collections.abc import Callable
from pathlib import Path

import pytest

from moe_megatron.checkpoint.formats.own_files import check_own
from moe_megatron.errors import CheckpointError, DataError
from moe_megatron.text.folder import read_files

NAME = "tokenizer.json"


def _file(path: Path, content: str = "{}") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def own(folder: Path) -> None:
    _file(folder / "data" / NAME)
    (folder / NAME).symlink_to(f"data/{NAME}")


def cache_of_the_hub(folder: Path) -> None:
    _file(folder.parent.parent / "blobs" / "1f")
    (folder / NAME).symlink_to("../../blobs/1f")


def view_of_a_model(folder: Path) -> None:
    for name in ("config.json", NAME):
        (folder / name).symlink_to(_file(folder.parent / "model" / name))


def same_name_elsewhere(folder: Path) -> None:
    _file(folder / "config.json")
    (folder / NAME).symlink_to(_file(folder.parent / "private" / NAME))


def other_name_elsewhere(folder: Path) -> None:
    (folder / NAME).symlink_to(_file(folder.parent / "private" / "secret"))


def beside_another_model(folder: Path) -> None:
    view_of_a_model(folder)
    (folder / NAME).unlink()
    (folder / NAME).symlink_to(_file(folder.parent / "private" / NAME))


def configuration_of_another_name(folder: Path) -> None:
    (folder / "config.json").symlink_to(_file(folder.parent / "private" / "settings"))
    (folder / NAME).symlink_to(_file(folder.parent / "private" / NAME))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "snapshots" / "abc"
    place.mkdir(parents=True)
    return place


@pytest.mark.parametrize("linked", [own, cache_of_the_hub, view_of_a_model])
def test_link_within_a_model_is_followed(linked: Callable[[Path], None], folder: Path) -> None:
    linked(folder)
    check_own(folder / NAME, folder)
    assert read_files(folder)[NAME] == b"{}"


@pytest.mark.parametrize(
    "linked",
    [
        same_name_elsewhere,
        other_name_elsewhere,
        beside_another_model,
        configuration_of_another_name,
    ],
)
def test_link_out_of_a_model_is_refused(linked: Callable[[Path], None], folder: Path) -> None:
    linked(folder)
    with pytest.raises(CheckpointError, match=r"link to .*, which is not in the model's folder"):
        check_own(folder / NAME, folder)
    with pytest.raises(DataError, match=r"link to .*, which is not in the tokenizer's folder"):
        read_files(folder)
