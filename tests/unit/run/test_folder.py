import pytest

from moe_megatron.config import load_config
from moe_megatron.errors import CheckpointError
from moe_megatron.run.folder import check_resumable, fresh_run_dir, write_config


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
    check_resumable(tmp_path)
