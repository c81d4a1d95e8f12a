"""The rules of tests/conftest.py, on small test files in a folder of their own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"

SKIPS = """
import pytest
def test_runs(): pass
def test_skips(): pytest.skip("needs slurm")
@pytest.mark.xfail(strict=True)
def test_fails_as_expected(): assert False
"""
SKIPS_AT_IMPORT = """
import pytest
pytest.importorskip("no_such_module_here")
"""
GPU = """
import pytest
def test_runs(): pass
@pytest.mark.gpu
def test_on_gpu(): raise AssertionError
"""
DEEP = """
import pytest
def test_runs(): pass
@pytest.mark.deep
def test_everything(): pass
"""
FOLDERS = """
import pytest
WRITTEN = []
class Test:
    @pytest.fixture(scope="class")
    def place(self, tmp_path_factory):
        WRITTEN.append(tmp_path_factory.mktemp("place"))
        yield WRITTEN[0]
        assert WRITTEN[0].is_dir()
    def test_writes(self, place, tmp_path):
        WRITTEN.append(tmp_path)
        assert {outcome}
def test_later():
    assert [folder.exists() for folder in WRITTEN] == [not {outcome}] * 2
"""
INI = """
[pytest]
tmp_path_retention_policy = failed
markers =
    deep: exhaustive
    gpu: needs a GPU
"""


@pytest.fixture
def outcome(tmp_path):
    """Runs one test file under the policy; returns pytest's exit status and output."""
    shutil.copy(CONFTEST, tmp_path)
    (tmp_path / "pytest.ini").write_text(INI)

    def run(body: str, *options: str, ci: str) -> tuple[int, str]:
        (tmp_path / "test_it.py").write_text(body)
        answer = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, "."],
            cwd=tmp_path,
            env=os.environ | {"CI": ci},
            capture_output=True,
            text=True,
        )
        return answer.returncode, answer.stdout

    return run


@pytest.mark.parametrize("options", [(), ("-n", "1")])
def test_skip_in_ci_fails_the_run(outcome, options):
    status, output = outcome(SKIPS, *options, ci="true")
    assert status == 1
    assert "skipped in CI (Skipped: needs slurm)" in output
    assert "1 failed, 1 passed, 1 xfailed" in output.splitlines()[-1]


def test_skip_outside_ci_passes(outcome):
    status, output = outcome(SKIPS, ci="")
    assert status == 0
    assert "1 passed, 1 skipped, 1 xfailed" in output.splitlines()[-1]


def test_skip_of_a_whole_module_in_ci_fails_the_run(outcome):
    status, output = outcome(SKIPS_AT_IMPORT, ci="true")
    assert status != 0
    assert "skipped in CI" in output


@pytest.mark.parametrize("options", [(), ("-n", "1")])
def test_gpu_without_cuda_is_deselected_and_counted(outcome, options):
    if Path("/dev/nvidiactl").exists():
        return  # the test it would deselect runs there
    status, output = outcome(GPU, *options, ci="true")
    assert status == 0
    assert "1 gpu tests deselected: no CUDA device on this machine" in output
    assert "1 passed" in output.splitlines()[-1]


def test_deep_runs_where_it_is_asked_for(outcome):
    status, output = outcome(DEEP, ci="true")
    assert status == 0
    assert "1 deep tests deselected: make test-deep runs them" in output
    assert "1 passed" in output.splitlines()[-1]
    status, output = outcome(DEEP, "-m", "deep", ci="true")
    assert status == 0
    assert "1 passed, 1 deselected" in output.splitlines()[-1]


@pytest.mark.parametrize("passes", [True, False])
def test_folders_of_what_passed_are_deleted_at_once(outcome, passes):
    _, output = outcome(FOLDERS.format(outcome=passes), ci="true")
    counts = "2 passed" if passes else "1 failed, 1 passed"
    assert counts in output.splitlines()[-1]
