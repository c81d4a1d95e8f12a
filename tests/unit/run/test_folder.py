import pytest

from moe_megatron.config import apply_overrides, load_config
from moe_megatron.errors import CheckpointError
from moe_megatron.run.folder import (
    announce_config,
    check_resumable,
    checkpoints_of,
    continued,
    fresh_run_dir,
    write_config,
)


def used(folder):
    folder.mkdir()
    (folder / "metrics.jsonl").touch()
    return folder


def test_free_name_is_taken_as_it_is(tmp_path):
    assert fresh_run_dir(tmp_path / "run") == tmp_path / "run"


def test_folder_without_a_run_is_taken_as_it_is(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").touch()
    assert fresh_run_dir(tmp_path / "run") == tmp_path / "run"


def test_used_names_are_counted_on(tmp_path):
    used(tmp_path / "run")
    assert fresh_run_dir(tmp_path / "run") == tmp_path / "run-2"
    used(tmp_path / "run-2")
    assert fresh_run_dir(tmp_path / "run") == tmp_path / "run-3"
    assert fresh_run_dir(tmp_path / "run-2") == tmp_path / "run-2-2"


def test_configuration_comes_back_equal(tmp_path):
    config = load_config("test_tiny")
    file = write_config(config, tmp_path / "new" / "run")
    assert load_config(file) == config
    assert [path.name for path in file.parent.iterdir()] == ["config.yaml"]


def test_run_directory_below_a_file_is_explained(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        CheckpointError,
        match=r"the run directory .*file/run cannot be written \(Not a directory\). Change its "
        r"permissions or free space, or choose another one with --run-dir.",
    ):
        write_config(load_config("test_tiny"), tmp_path / "file" / "run")


def test_only_a_run_with_a_checkpoint_can_be_resumed(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no run to resume \(config.yaml is missing\)"):
        check_resumable(tmp_path)
    write_config(load_config("test_tiny"), tmp_path)
    with pytest.raises(CheckpointError, match="holds no checkpoint to resume from"):
        check_resumable(tmp_path)
    (tmp_path / "checkpoints" / "iter_0000001").mkdir(parents=True)
    assert check_resumable(tmp_path) == tmp_path / "checkpoints"


def test_run_that_saves_elsewhere_is_resumed_from_there(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    changes = {"megatron.save": str(elsewhere), "run_dir": str(tmp_path / "run")}
    config = apply_overrides(load_config("test_tiny"), changes)
    write_config(config, tmp_path / "run")
    (elsewhere / "iter_0000001").mkdir(parents=True)
    (elsewhere / "iter_0000001" / ".metadata").touch()
    assert check_resumable(tmp_path / "run") == checkpoints_of(config) == elsewhere
    assert continued(config).checkpoint.load == str(elsewhere)


def test_configuration_of_a_run_that_goes_on_is_announced_elsewhere(tmp_path):
    run_dir, starting = tmp_path / "run", tmp_path / "starting"
    config = load_config("test_tiny")
    assert announce_config(config, run_dir, starting) == run_dir / "config.yaml"
    before = (run_dir / "config.yaml").read_bytes()
    changed = apply_overrides(config, {"training.train_steps": 7})
    file = announce_config(changed, run_dir, starting)
    assert (file.parent, load_config(file)) == (starting, changed)
    assert (run_dir / "config.yaml").read_bytes() == before
