"""What makes a node unfit, on this node and on folders that look like one."""

import os
from pathlib import Path

import pytest

from moe_megatron.platform.slurm.finding import Finding, healthy
from moe_megatron.platform.slurm.node_health import (
    Needs,
    _clock,
    _disk,
    _infiniband,
    _memory,
    _site,
    examine,
)


def test_this_node_is_well_for_small_needs(tmp_path: Path) -> None:
    findings = list(examine(Needs(disks=(tmp_path,), free_gib=0.001, memory_gib=0.01)))
    assert healthy(findings), findings
    assert list(tmp_path.iterdir()) == []


def test_want_of_space_and_memory_fail(tmp_path: Path) -> None:
    findings = list(examine(Needs(disks=(tmp_path,), free_gib=1e9, memory_gib=1e9)))
    assert [f.mark for f in findings if f.what.startswith(("memory", "disk"))] == ["FAIL", "FAIL"]
    assert not healthy(findings)


def test_folder_that_cannot_be_written_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    finding = _disk(tmp_path / "file" / "below", 0.0)
    assert (finding.mark, finding.found) == ("FAIL", "cannot be written: Not a directory")


def test_memory_is_what_is_available(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 4194304 kB\nMemAvailable:  2097152 kB\n")
    assert _memory(2.0, meminfo) == Finding("ok", "memory", "2 GiB available, 2 needed")
    assert _memory(3.0, meminfo).mark == "FAIL"


@pytest.mark.parametrize(
    ("ahead", "mark", "found"),
    [
        (2.0, "ok", "2.0 s ahead of the batch script's, 60 allowed"),
        (-90.0, "FAIL", "90.0 s behind the batch script's, 60 allowed"),
        (90.0, "FAIL", "90.0 s ahead of the batch script's, 60 allowed"),
    ],
)
def test_clock(ahead: float, mark: str, found: str) -> None:
    assert _clock(ahead, 60.0) == Finding(mark, "clock", found)


def adapter(folder: Path, name: str, state: str) -> None:
    port = folder / name / "ports" / "1"
    port.mkdir(parents=True)
    (port / "state").write_text(f"{state}\n")
    (port / "rate").write_text("400 Gb/sec (4X NDR)\n")


def test_infiniband_without_adapters_is_skipped(tmp_path: Path) -> None:
    assert _infiniband(tmp_path / "absent").mark == "skip"


def test_infiniband_with_unused_ports_is_well(tmp_path: Path) -> None:
    adapter(tmp_path, "mlx5_0", "4: ACTIVE")
    adapter(tmp_path, "mlx5_1", "1: DOWN")
    finding = _infiniband(tmp_path)
    assert (finding.mark, finding.found) == ("ok", "1 ports active, 400 Gb/sec (4X NDR)")


@pytest.mark.parametrize("state", ["2: INIT", "3: ARMED"])
def test_infiniband_port_that_lost_its_network_fails(tmp_path: Path, state: str) -> None:
    adapter(tmp_path, "mlx5_0", "4: ACTIVE")
    adapter(tmp_path, "mlx5_1", state)
    finding = _infiniband(tmp_path)
    assert (finding.mark, finding.found) == ("FAIL", f"1 ports active; mlx5_1/1 {state}")


def test_infiniband_without_an_active_port_fails(tmp_path: Path) -> None:
    adapter(tmp_path, "mlx5_0", "1: DOWN")
    assert _infiniband(tmp_path).mark == "FAIL"


def test_check_of_the_site_decides_by_its_exit_code(tmp_path: Path) -> None:
    program = tmp_path / "check"
    for code, mark in ((0, "ok"), (3, "FAIL")):
        program.write_text(f"#!/bin/sh\necho said\nexit {code}\n")
        os.chmod(program, 0o755)
        finding = _site(str(program))
        assert (finding.mark, finding.found) == (mark, f"exit code {code} said")


def test_check_of_the_site_that_is_not_there_fails(tmp_path: Path) -> None:
    finding = _site(str(tmp_path / "absent"))
    assert finding.mark == "FAIL"
    assert "No such file" in finding.found
