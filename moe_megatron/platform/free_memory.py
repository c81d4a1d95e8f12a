"""How much memory processes that are started now may take on this machine.

It does not know what they need; that is `analytics/run_memory.py`.
"""

import contextlib
from pathlib import Path

from moe_megatron.platform.choice import Choice

_GROUPS = Path("/sys/fs/cgroup")
_PROC = Path("/proc")


def available_memory(*, proc: Path = _PROC, groups: Path = _GROUPS) -> Choice[int] | None:
    """The bytes that are free or can be freed, under the tightest limit that applies.

    Args:
        proc: Where the kernel shows processes.
        groups: Where it shows control groups, by which containers and batch systems limit memory.

    Returns:
        None where the system does not say.
    """
    free = _of_machine(proc)
    found = [] if free is None else [Choice(value=free, reason="what the machine has free")]
    found += [
        Choice(value=free, reason=f"what the limit of {limit / 2**30:.1f} GiB leaves")
        for limit, free in _of_groups(proc, groups)
    ]
    return min(found, key=lambda choice: choice.value, default=None)


def _of_machine(proc: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = (proc / "meminfo").read_text(encoding="utf-8").splitlines()
        return 1024 * next(int(it.split()[1]) for it in lines if it.startswith("MemAvailable:"))
    return None


def _of_groups(proc: Path, groups: Path) -> list[tuple[int, int]]:
    """Limit and free bytes of this process's group and of each around it that has a limit."""
    try:
        lines = (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            root, files = groups, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = groups / "memory"
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # Inside a container the path is that of the host, which does not exist there.
        inner = root / path.strip("/")
        for folder in (inner, *inner.parents):
            if folder == root.parent:
                break
            found += _of_group(folder, *files)
    return found


def _of_group(folder: Path, limit: str, used: str, cached: str) -> list[tuple[int, int]]:
    with contextlib.suppress(OSError, ValueError, StopIteration):
        most = int((folder / limit).read_text())  # "max": no limit
        statistics = (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
        reclaimable = next(int(it.split()[1]) for it in statistics if it.split()[0] == cached)
        if most < 2**60:  # the first version says so that there is none
            return [(most, max(0, most - int((folder / used).read_text()) + reclaimable))]
    return []
