"""What W&B hears of a checkpoint, and when; failures are in tests/functional/test_full_disk.py."""

from pathlib import Path
from typing import Any

import pytest
from megatron.training import checkpointing, wandb_utils

from moe_megatron.config.checkpoint_files import TRACKER, iteration_dir
from moe_megatron.mcore.state.unwritten import Unwritten


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Steps that W&B has heard of, and whether their tracker file was there."""
    heard: list[Any] = []

    def tell(path: str, tracker: str, folder: str, step: int) -> None:
        heard.append((step, Path(tracker).exists()))

    monkeypatch.setattr(wandb_utils, "on_save_checkpoint_success", tell)
    return heard


def saved(folder: Path, step: int) -> None:
    """As Megatron ends a save: the tracker file, then W&B."""
    with checkpointing.maybe_msc.open(str(folder / TRACKER), "w") as file:
        file.write(str(step))
    place, tracker = iteration_dir(folder, step), folder / TRACKER
    wandb_utils.on_save_checkpoint_success(str(place), str(tracker), str(folder), step)


def test_wandb_hears_of_a_checkpoint_once_all_ranks_have_it(tmp_path: Path, told: Any) -> None:
    unwritten = Unwritten(tmp_path)
    with unwritten.watching():
        saved(tmp_path, 5)
        assert told == []
        assert unwritten.commit(5) == ""
        unwritten.announce(5)
        unwritten.announce(5)
    assert told == [(5, True)]


def test_wandb_hears_nothing_of_one_that_was_discarded(tmp_path: Path, told: Any) -> None:
    unwritten = Unwritten(tmp_path)
    with unwritten.watching():
        saved(tmp_path, 5)
        unwritten.forget(5)
        unwritten.announce(5)
    assert (told, (tmp_path / TRACKER).exists()) == ([], False)


def test_another_folder_is_told_at_once(tmp_path: Path, told: Any) -> None:
    with Unwritten(tmp_path / "ours").watching():
        saved(tmp_path, 5)
    assert told == [(5, True)]
