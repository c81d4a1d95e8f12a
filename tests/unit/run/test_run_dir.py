from moe_megatron.run.run_dir import fresh_run_dir


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
