"""Where a report was made: machine, choices, versions and commit.

`moe-megatron doctor` looks at the machine, in a process of its own: this one must not take memory
of the device that is measured.
"""

import contextlib
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.gpu_report.stages import ROOT, Need
from moe_megatron.version import package_version

_PACKAGES = ("torch", "megatron-core", "transformer-engine", "transformers", "numpy")
_SHOWN = ("GPUs", "CPU cores", "memory", "torch", "Megatron-Core", "Transformer Engine")
_DOCTOR = (sys.executable, "-m", "moe_megatron", "doctor", "--json")
_DRIVER = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
_SECONDS = 60.0
"""How long a look at the machine may take."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of the place; empty where it could not be found out."""

    machine: Mapping[str, str] = field(default_factory=dict)
    choices: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What a run would use, as `{"value", "reason"}`."""
    versions: Mapping[str, str] = field(default_factory=dict)
    commit: str = ""

    def lacks(self, need: Need | None) -> str | None:
        """Why a stage cannot run here; None where nothing is known against it."""
        device, layers = self.choices.get("device"), self.choices.get("transformer")
        if need == "gpu" and device is not None and device["value"] == "cpu":
            return f"needs a GPU ({device['reason']})"
        if need == "engine" and layers is not None and layers["value"] == "local":
            return f"needs a GPU with Transformer Engine ({layers['reason']})"
        return None


def collect(environment: Mapping[str, str]) -> Facts:
    """Look around.

    Args:
        environment: Variables that the stages will have, beside those of this process.
    """
    seen = _read_doctor(_output(_DOCTOR, environment))
    machine = {name: seen["found"][name] for name in _SHOWN if name in seen["found"]}
    if driver := _output(_DRIVER):
        machine["driver"] = driver
    changed = " with changes" if _output(("git", "status", "--porcelain")) else ""
    return Facts(
        machine=machine,
        choices=seen["used"],
        versions=_versions(),
        commit=_output(("git", "rev-parse", "HEAD")) + changed,
    )


def _read_doctor(text: str) -> dict[str, Any]:
    """What the doctor says; nothing where it says something else."""
    with contextlib.suppress(json.JSONDecodeError):
        return dict(json.loads(text))
    return {"found": {}, "used": {}}


def _versions() -> dict[str, str]:
    versions = {"Python": sys.version.split()[0], "open-moe-trainer-lab": package_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _output(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """What a command prints; "" where it is missing or takes too long."""
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=_SECONDS,
            start_new_session=True,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
