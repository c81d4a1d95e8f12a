"""Examines the GPUs of a node: number, memory errors, links to the machine, and dcgm's own test.

It reads what `nvidia-smi` and `dcgmi` print and loads no torch, which would take seconds and memory
of every GPU. Where a program is not installed, a line says that nothing was examined.
"""

import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence

from moe_megatron.platform.slurm.finding import Finding, judged

_SECONDS = 120.0
_DIAGNOSIS_SECONDS = 900.0
_FIELDS = (
    "index",
    "ecc.errors.uncorrected.volatile.total",
    "remapped_rows.pending",
    "remapped_rows.failure",
    "pcie.link.width.current",
    "pcie.link.width.max",
)


def examine_gpus(wanted: int, dcgm_level: int) -> Iterator[Finding]:
    """Look at the GPUs of this node; yields what it found.

    Args:
        wanted: Number of GPUs that the job has on each node; 0 looks at none.
        dcgm_level: Level of `dcgmi diag`: 0 runs none, 1 takes seconds, 2 (with the bandwidth of
            PCIe and memory) minutes.
    """
    if wanted == 0:
        yield Finding("skip", "GPUs", "the job asks for none")
        return
    if shutil.which("nvidia-smi") is None:
        yield Finding("skip", "GPUs", "nvidia-smi is not installed")
        return
    query = f"--query-gpu={','.join(_FIELDS)}"
    code, text = _output(_SECONDS, "nvidia-smi", query, "--format=csv,noheader,nounits")
    if code != 0:
        yield Finding("FAIL", "GPUs", f"nvidia-smi ended with code {code}: {text}")
        return
    rows = [
        dict(zip(_FIELDS, map(str.strip, line.split(",")), strict=False))
        for line in text.splitlines()
        if line
    ]
    yield judged(len(rows) == wanted, "GPUs", f"{len(rows)} of {wanted}")
    yield _without("GPU memory errors", rows, _memory_fault)
    yield _without("lost PCIe lanes", rows, _lost_lanes)
    yield _diagnosis(dcgm_level)


def _without(
    what: str, rows: Sequence[Mapping[str, str]], fault: Callable[[Mapping[str, str]], str]
) -> Finding:
    faults = [f"GPU {row['index']} {text}" for row in rows if (text := fault(row))]
    return judged(not faults, what, "; ".join(faults) or "none")


def _memory_fault(row: Mapping[str, str]) -> str:
    """Uncorrected errors since the driver was loaded, or rows that cannot be replaced."""
    errors = _number(row, "ecc.errors.uncorrected.volatile.total")
    if errors:
        return f"has {errors} uncorrected ECC errors"
    if row.get("remapped_rows.failure") in ("1", "Yes"):
        return "has no spare rows left"
    if row.get("remapped_rows.pending") in ("1", "Yes"):
        return "waits for a reset to replace rows"
    return ""


def _lost_lanes(row: Mapping[str, str]) -> str:
    width, most = _number(row, "pcie.link.width.current"), _number(row, "pcie.link.width.max")
    return f"uses {width} of {most} lanes" if width < most else ""


def _number(row: Mapping[str, str], name: str) -> int:
    """A number; 0 where the GPU does not know it, as in "[N/A]"."""
    text = row.get(name, "")
    return int(text) if text.isdigit() else 0


def _diagnosis(level: int) -> Finding:
    if level == 0:
        return Finding("skip", "dcgmi diag", "level 0 is asked for")
    if shutil.which("dcgmi") is None:
        return Finding("skip", "dcgmi diag", "dcgmi is not installed")
    code, text = _output(_DIAGNOSIS_SECONDS, "dcgmi", "diag", "--run", str(level))
    failed = [" ".join(line.split()) for line in text.splitlines() if "Fail" in line]
    return judged(code == 0 and not failed, "dcgmi diag", "; ".join(failed) or f"exit code {code}")


def _output(seconds: float, *words: str) -> tuple[int, str]:
    """Exit code and output of a program; -1 and the reason if it does not end in time."""
    try:
        answer = subprocess.run(words, capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return -1, str(error)
    return answer.returncode, (answer.stdout + answer.stderr).strip()
