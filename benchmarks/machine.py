"""What a result must say about the machine and the software it was measured with, in Markdown."""

import importlib.metadata
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

_PACKAGES = ("torch", "megatron-core", "transformers")


def heading(title: str, notes: Sequence[str] = ()) -> str:
    """Title, date, command, machine and versions of a result file."""
    import torch  # takes seconds, and the other functions do without it

    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
    words = " ".join(shlex.quote(word) for word in sys.argv[1:])
    module = sys.modules["__main__"].__spec__
    name = module.name.removesuffix(".__main__") if module else Path(sys.argv[0]).stem
    lines = [
        f"# {title}",
        "",
        f"- Date: {datetime.now():%Y-%m-%d}",
        f"- Command: `python -m {name} {words}`".replace(" `", "`").replace(":`", ": `"),
        f"- Machine: {len(os.sched_getaffinity(0))} cores of {_processor()}, "
        f"{torch.backends.cpu.get_cpu_capability()}, no GPU; load average at the end "
        f"{os.getloadavg()[1]:.1f}",
        f"- Versions: Python {platform.python_version()}, {versions}",
        *(f"- {note}" for note in notes),
    ]
    return "\n".join(lines) + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join("---" for _ in header) + " |"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def write(path: Path | None, text: str) -> None:
    """Print a result, and keep it where a path is given."""
    print(text)
    if path is not None:
        path.write_text(text, encoding="utf-8")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
