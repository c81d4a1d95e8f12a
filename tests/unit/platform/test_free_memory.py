"""Free memory, from files as the kernel writes them."""

from pathlib import Path

from moe_megatron.platform.free_memory import available_memory

GIB = 2**30


def machine(root: Path, *, group: str, available_kib: int = 8 * 2**20) -> tuple[Path, Path]:
    proc, groups = root / "proc", root / "cgroup"
    (proc / "self").mkdir(parents=True)
    groups.mkdir()
    (proc / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable:  {available_kib} kB\n")
    (proc / "self" / "cgroup").write_text(group)
    return proc, groups


def limit(folder: Path, most: object, used: int, cached: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\n")


def test_machine_without_limits_has_what_the_kernel_can_free(tmp_path: Path) -> None:
    proc, groups = machine(tmp_path, group="0::/user.slice\n")
    limit(groups / "user.slice", "max", 7)
    found = available_memory(proc=proc, groups=groups)
    assert found is not None
    assert (found.value, found.reason) == (8 * GIB, "what the machine has free")


def test_limit_of_a_group_around_the_process_counts(tmp_path: Path) -> None:
    proc, groups = machine(tmp_path, group="0::/job/step\n")
    limit(groups / "job", 4 * GIB, used=3 * GIB, cached=GIB)
    limit(groups / "job" / "step", "max", used=GIB)
    found = available_memory(proc=proc, groups=groups)
    assert found is not None
    assert (found.value, found.reason) == (2 * GIB, "what the limit of 4.0 GiB leaves")


def test_limit_of_a_container_is_at_the_root(tmp_path: Path) -> None:
    proc, groups = machine(tmp_path, group="0::/as/the/host/calls/it\n")
    limit(groups, 2 * GIB, used=3 * GIB)
    found = available_memory(proc=proc, groups=groups)
    assert found is not None
    assert found.value == 0


def test_first_version_of_control_groups(tmp_path: Path) -> None:
    proc, groups = machine(tmp_path, group="9:cpu,cpuacct:/\n4:memory:/job\n")
    folder = groups / "memory" / "job"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text(str(3 * GIB))
    (folder / "memory.usage_in_bytes").write_text(str(2 * GIB))
    (folder / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 1073741824\n")
    found = available_memory(proc=proc, groups=groups)
    assert found is not None
    assert found.value == 2 * GIB


def test_system_that_says_nothing(tmp_path: Path) -> None:
    assert available_memory(proc=tmp_path, groups=tmp_path) is None


def test_this_machine_says_something_plausible() -> None:
    found = available_memory()
    assert found is not None
    assert 2**20 < found.value < 2**50
