"""`moe-megatron slurm` without a cluster: usage, mistakes, and the words for ranks."""

from pathlib import Path

import pytest

from moe_megatron.cli.main import main
from moe_megatron.config import load_config
from moe_megatron.run.folder import write_config

CPU = ["--nodes", "1", "--processes-per-node", "2"]


@pytest.fixture
def refused(capsys):
    """Runs words that end with code 2; returns the message."""

    def run(*words: str) -> str:
        assert main(["slurm", *words]) == 2
        return capsys.readouterr().err

    return run


def test_usage_names_every_action(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["slurm", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for action in ("render", "submit", "status", "logs", "verdict", "check-node", "node"):
        assert f"\n  {action} " in text


def test_unknown_action_is_refused(refused) -> None:
    assert "no action 'sumbit'. Did you mean 'submit'?" in refused("sumbit")


@pytest.mark.parametrize("words", [[], ["--gpus-per-node", "8", "--processes-per-node", "8"]])
def test_ranks_of_a_node_are_given_once(refused, words: list[str]) -> None:
    assert "give either --gpus-per-node" in refused("render", "--nodes", "1", *words)


@pytest.mark.parametrize("option", ["--grace", "--cores-per-process"])
def test_numbers_below_one_are_refused(refused, option: str) -> None:
    assert f"{option} must be at least 1, not 0" in refused("render", *CPU, option, "0")


def test_layout_that_does_not_fit_is_refused(refused) -> None:
    words = ["--config", "mixtral_8x7b", "--nodes", "3", "--gpus-per-node", "8"]
    assert "2, 4 or 8 nodes fit" in refused("render", *words)


def test_submit_where_there_is_no_slurm_is_explained(refused, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    message = refused("submit", *CPU, "--run-dir", str(tmp_path / "a"))
    assert "'sbatch' is not installed here" in message


def test_submit_with_settings_that_are_not_there_writes_nothing(refused, tmp_path) -> None:
    words = ["--run-dir", str(tmp_path / "a"), "--env", str(tmp_path / "absent.sh")]
    assert "absent.sh does not exist; give --env FILE" in refused("submit", *CPU, *words)
    assert list(tmp_path.iterdir()) == []


def test_resume_of_a_folder_without_a_run_is_refused(refused, tmp_path) -> None:
    assert "holds no run to resume" in refused("submit", *CPU, "--resume", str(tmp_path))


def test_words_for_ranks_are_those_not_about_the_job(capsys) -> None:
    assert main(["slurm", "render", *CPU, "--train-iters", "99", "--set", "moe.top_k=1"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == 'train --config demo_moe --set moe.top_k=1 --train-iters 99 "$@"'


def test_status_and_verdict_of_a_folder_without_a_run_are_refused(refused, tmp_path) -> None:
    for action in ("status", "verdict"):
        assert "holds no run (config.yaml is missing)" in refused(action, str(tmp_path))


def test_verdict_of_a_run_is_the_exit_code(tmp_path: Path, capsys) -> None:
    write_config(load_config("demo_moe"), tmp_path)
    assert main(["slurm", "verdict", str(tmp_path)]) == 1
    assert main(["slurm", "verdict", str(tmp_path), "--before"]) == 75
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("250")
    assert main(["slurm", "verdict", "--config", "demo_moe", "--run-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "verdict 1, a fault: no rank was started; the run is at the beginning",
        "verdict 75, again: the attempt goes on from the beginning of 250",
        "verdict 0, done: step 250 of 250 is in a checkpoint",
    ]


def test_logs_before_a_job_has_run_say_so(refused, tmp_path) -> None:
    assert "no job has started ranks" in refused("logs", str(tmp_path))
    assert "has no log of a batch script" in refused("logs", str(tmp_path), "--batch")
    assert "rank3.log does not exist; ranks are numbered" in refused(
        "logs", str(tmp_path), "--rank", "3"
    )


def test_check_of_a_node_says_what_it_looked_at(capsys, tmp_path) -> None:
    words = ["check-node", "--disk", str(tmp_path), "--free-gib", "0.001"]
    assert main(["slurm", *words, "--memory-gib", "0.1"]) == 0
    assert main(["slurm", *words, "--memory-gib", "1e9"]) == 1
    assert "FAIL  memory: " in capsys.readouterr().out


def test_node_outside_of_a_job_is_refused(refused, monkeypatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert "SLURM_JOB_ID is not set" in refused("node", "--processes", "1")
