"""The script that installs what tests start, on machines that have it or may not install."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "system_packages.sh"
PROGRAMS = (
    *("cc", "prometheus", "promtool", "prometheus-alertmanager", "openssl", "chromium"),
    *("sbatch", "munge", "shellcheck", "ffmpeg", "pg_ctlcluster", "redis-server"),
)


@pytest.fixture
def run(tmp_path):
    """Runs the script on a machine with nothing but these programs and a few of coreutils."""

    def run(*programs: str) -> subprocess.CompletedProcess[str]:
        for name in ("bash", "id", "tr", "sort", "env"):
            (tmp_path / name).symlink_to(shutil.which(name))
        for name in programs:
            (tmp_path / name).write_text("#!/bin/sh\n")
            (tmp_path / name).chmod(0o755)
        return subprocess.run(
            [str(tmp_path / "bash"), str(SCRIPT)],
            env={**os.environ, "PATH": str(tmp_path)},
            capture_output=True,
            text=True,
        )

    return run


def test_machine_that_has_everything_is_left_alone(run):
    answer = run(*PROGRAMS)
    assert (answer.returncode, answer.stdout + answer.stderr) == (0, "")


def test_machine_without_apt_is_told_the_command(run):
    absent = {"prometheus", "prometheus-alertmanager"}
    answer = run(*(program for program in PROGRAMS if program not in absent))
    assert answer.returncode == 0
    assert answer.stderr == (
        "setup: some tests will be skipped: they need prometheus prometheus-alertmanager. "
        "On Debian or Ubuntu: "
        "sudo apt-get install -y --no-install-recommends prometheus prometheus-alertmanager\n"
    )
