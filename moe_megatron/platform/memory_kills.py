"""How many processes the kernel has killed for want of memory: in this control group, and in all.

The count before and after tells whether a SIGKILL was one of these.
"""

from pathlib import Path

_VERSION_1 = "memory"


def count_memory_kills() -> int | None:
    """The sum of the counters that this system has; None if it has none."""
    counts = [count for path in _counters() if (count := _read(path)) is not None]
    return sum(counts) if counts else None


def _counters() -> list[Path]:
    groups = Path("/sys/fs/cgroup")
    found = [Path("/proc/vmstat")]
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, place = line.split(":", 2)
        # In a container the root of the hierarchy is mounted, which is then the group itself.
        for folder in (place.lstrip("/"), ""):
            if controllers == "":
                found.append(groups / folder / "memory.events")
            elif _VERSION_1 in controllers.split(","):
                found.append(groups / "memory" / folder / "memory.oom_control")
    return list(dict.fromkeys(found))


def _read(path: Path) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(" ")
        if name == "oom_kill" and value.isdecimal():
            return int(value)
    return None
