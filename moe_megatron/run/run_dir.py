"""Folders of runs: one folder holds one run, and a new run never writes over an old one."""

from pathlib import Path

from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE


def fresh_run_dir(wanted: Path) -> Path:
    """A folder that holds no run yet: the wanted one, or the next free "<name>-2" and so on."""
    candidate, number = wanted, 1
    while (candidate / METRICS_FILE).exists():
        number += 1
        candidate = wanted.with_name(f"{wanted.name}-{number}")
    return candidate
