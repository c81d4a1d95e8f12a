"""SLURM's commands, where they are not there, refuse, or print what a job is."""

import os
from pathlib import Path

import pytest

from moe_megatron.errors import BackendUnavailableError
from moe_megatron.platform.slurm.queue import ask, describe_job


@pytest.fixture
def program(tmp_path: Path, monkeypatch):
    """Installs a program of SLURM."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def install(name: str, body: str) -> None:
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)

    return install


def test_command_that_is_not_installed_is_explained(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BackendUnavailableError, match="'squeue' is not installed here"):
        ask(["squeue"])


def test_refusal_is_quoted(program) -> None:
    program("sbatch", "echo 'sbatch: error: invalid partition' >&2; exit 1")
    with pytest.raises(BackendUnavailableError, match=r"'sbatch' refused: .* invalid partition"):
        ask(["sbatch", "x"])


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        ("JobState=RUNNING Reason=None Restarts=0 NodeList=n[1-2]", "running on n[1-2]"),
        ("JobState=PENDING Reason=BeginTime Restarts=2 NodeList=", "pending (BeginTime) started "),
    ],
)
def test_job_is_described(program, shown: str, said: str) -> None:
    program("scontrol", f"echo 'JobId=7 {shown}'")
    assert describe_job("7").startswith(said)


def test_job_that_slurm_forgot_is_not_in_the_queue(program) -> None:
    program("scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert describe_job("7") == "not in the queue"
