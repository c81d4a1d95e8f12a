"""What the launcher says of the checkpoint that a run goes on from."""

from pathlib import Path

import pytest

from moe_megatron.checkpoint.integrity.manifest import MANIFEST, Manifest, write_manifest
from moe_megatron.config import apply_overrides, dump_yaml, load_config
from moe_megatron.config.run import RunConfig
from moe_megatron.errors import CheckpointError
from moe_megatron.run.changes import check_load


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A run of 10 steps with checkpoints of steps 5 and 10, the last of which has a manifest."""
    checkpoints = tmp_path / "checkpoints"
    values = {"run_dir": str(tmp_path), "checkpoint.load": str(checkpoints)}
    config = apply_overrides(load_config("test_tiny"), values)
    for step in (5, 10):
        folder = checkpoints / f"iter_{step:07d}"
        folder.mkdir(parents=True)
        (folder / ".metadata").write_text("two words")
        (folder / "config.yaml").write_text(dump_yaml(config))
    (checkpoints / "latest_checkpointed_iteration.txt").write_text("10")
    files = {path.name: ((path.stat().st_size, "0"),) for path in folder.iterdir()}
    write_manifest(folder, Manifest(files=files))
    return config


def last(config: RunConfig) -> Path:
    return Path(config.run_dir, "checkpoints", "iter_0000010")


def test_a_finished_run_is_said_to_be_finished(config: RunConfig) -> None:
    ended = check_load(config)
    assert ended is not None
    assert ended.startswith(f"nothing to do: {last(config)} is the end of a run of 10 steps.")


@pytest.mark.parametrize("damage", ["truncated", "missing", "not described", "unsealed"])
def test_a_run_whose_last_checkpoint_is_damaged_is_not_finished(
    config: RunConfig, damage: str
) -> None:
    metadata, manifest = last(config) / ".metadata", last(config) / MANIFEST
    match damage:
        case "truncated":
            metadata.write_text("two")
        case "missing":
            metadata.unlink()
        case "not described":
            manifest.write_text("{")
        case "unsealed":
            metadata.unlink()
            manifest.unlink()
    assert check_load(config) is None
    # Nor where the ranks may not fall back on the one before; they say what is wrong with it.
    assert check_load(apply_overrides(config, {"checkpoint.fallback": False})) is None


def test_changes_are_compared_with_the_checkpoint_that_is_used(config: RunConfig) -> None:
    before = apply_overrides(config, {"training.seed": 7})
    (last(config).with_name("iter_0000005") / "config.yaml").write_text(dump_yaml(before))
    assert check_load(apply_overrides(config, {"training.train_steps": 20})) is None
    (last(config) / ".metadata").unlink()
    with pytest.raises(CheckpointError, match=r"iter_0000005 cannot be resumed with these changes"):
        check_load(config)
