"""GPUs of a node, as programs that print what nvidia-smi and dcgmi print describe them."""

import os
import shutil

import pytest

from moe_megatron.platform.slurm.gpu_health import examine_gpus

GOOD = "{}, 0, 0, 0, 16, 16"


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Installs programs that print something, on a machine without others of these names."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def install(name: str, text: str, code: int = 0) -> None:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{cat} <<'END'\n{text}\nEND\nexit {code}\n")
        os.chmod(path, 0o755)

    cat = shutil.which("cat", path="/bin:/usr/bin")
    return install


def marks(*arguments: int) -> dict[str, str]:
    return {finding.what: f"{finding.mark} {finding.found}" for finding in examine_gpus(*arguments)}


def test_job_without_gpus_looks_at_none(programs) -> None:
    assert marks(0, 0) == {"GPUs": "skip the job asks for none"}


def test_node_without_nvidia_smi_is_skipped(programs) -> None:
    assert marks(8, 1) == {"GPUs": "skip nvidia-smi is not installed"}


def test_node_with_good_gpus(programs) -> None:
    programs("nvidia-smi", "\n".join(GOOD.format(i) for i in range(2)))
    assert marks(2, 1) == {
        "GPUs": "ok 2 of 2",
        "GPU memory errors": "ok none",
        "lost PCIe lanes": "ok none",
        "dcgmi diag": "skip dcgmi is not installed",
    }


def test_gpu_that_fell_off_the_bus_is_missed(programs) -> None:
    programs("nvidia-smi", GOOD.format(0))
    assert marks(2, 0)["GPUs"] == "FAIL 1 of 2"


def test_driver_that_does_not_answer_fails(programs) -> None:
    programs("nvidia-smi", "Failed to initialize NVML", 9)
    assert marks(2, 0) == {"GPUs": "FAIL nvidia-smi ended with code 9: Failed to initialize NVML"}


@pytest.mark.parametrize(
    ("row", "what", "found"),
    [
        ("0, 3, 0, 0, 16, 16", "GPU memory errors", "GPU 0 has 3 uncorrected ECC errors"),
        ("0, 0, 1, 0, 16, 16", "GPU memory errors", "GPU 0 waits for a reset to replace rows"),
        ("0, 0, 0, Yes, 16, 16", "GPU memory errors", "GPU 0 has no spare rows left"),
        ("0, 0, 0, 0, 8, 16", "lost PCIe lanes", "GPU 0 uses 8 of 16 lanes"),
    ],
)
def test_bad_gpu_is_named(programs, row: str, what: str, found: str) -> None:
    programs("nvidia-smi", row)
    assert marks(1, 0)[what] == f"FAIL {found}"


def test_gpu_that_does_not_count_errors_is_well(programs) -> None:
    programs("nvidia-smi", "0, [N/A], [N/A], [N/A], 16, 16")
    assert marks(1, 0)["GPU memory errors"] == "ok none"


@pytest.mark.parametrize(
    ("text", "code", "found"),
    [
        ("| Memory | Pass |", 0, "ok exit code 0"),
        ("| Memory   | Fail |", 0, "FAIL | Memory | Fail |"),
        ("no host engine", 226, "FAIL exit code 226"),
    ],
)
def test_diagnosis_of_dcgm(programs, text: str, code: int, found: str) -> None:
    programs("nvidia-smi", GOOD.format(0))
    programs("dcgmi", text, code)
    assert marks(1, 1)["dcgmi diag"] == found
