"""`moe-megatron doctor`: show what this machine has and what a run would use.

`collect` gathers everything as plain data, `run_doctor` prints it. Versions come from package
metadata, so a broken Megatron installation is reported instead of crashing the report. Nothing is
changed, downloaded or started, and no training module is loaded.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform as python_platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from moe_megatron.cli.parser import Parser
from moe_megatron.errors import MoEError
from moe_megatron.files import default_cache_dir
from moe_megatron.platform.choice import Choice
from moe_megatron.platform.compiler import c_compiler
from moe_megatron.platform.device import (
    Device,
    available_cores,
    choose_backend,
    choose_num_processes,
    choose_precision,
    choose_transformer_impl,
    detect_device,
)

_NEEDED_MEGATRON = "0.19"
_ABSENT = "not found"


def collect(config: str | None = None, num_processes: int | None = None) -> dict[str, Any]:
    """Examine the machine.

    Args:
        config: Preset or YAML file of a run whose memory shall be estimated.
        num_processes: Its processes on this machine; None chooses as `train` does.

    Returns:
        `{"ok": bool, "found": {name: value}, "used": {name: {"value", "reason"}}, "memory":
        [text], "problems": [text]}`, in plain JSON types. `ok` says whether training can work; each
        problem says what to do about it.
    """
    memory: list[str] = []
    problems: list[str] = []
    found = _software(problems) | _hardware()
    used: dict[str, dict[str, Any]] = {}
    try:
        built_in = _torch_facts(found)
        device = detect_device()
        used = _choices(device)
        found["GPUs"] = "; ".join(map(str, device.value.gpus)) or "none in use"
        backend = used["backend"]["value"]
        if backend not in built_in:
            problems.append(
                f"torch is built without {backend} (it has: {found['torch backends']}), which "
                f"{device.value.kind} runs need; install another build of torch, or run make setup."
            )
        if config is not None:
            memory = _memory(config, device.value, num_processes)
    except MoEError as error:
        problems.append(str(error))
    except (ImportError, OSError) as error:
        problems.append(f"torch cannot be imported ({error}); run make setup.")
    return {
        "ok": not problems,
        "found": found,
        "used": used,
        "memory": memory,
        "problems": problems,
    }


def run(argv: Sequence[str]) -> int:
    """Run the verb.

    Args:
        argv: What follows `moe-megatron doctor`.

    Returns:
        The exit code: 0 when training can work here, 1 when it cannot.
    """
    parser = Parser(
        prog="moe-megatron doctor",
        description="Show what this machine has, what a run would use, and what is missing.",
        epilog="examples:\n  moe-megatron doctor --json\n  moe-megatron doctor --config demo_moe",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--config", metavar="RUN", help="estimate the memory of this run: a preset or YAML file"
    )
    parser.add_argument("--num-processes", type=int, help="its processes on this machine")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    options = parser.parse_args(argv)
    return run_doctor(options.json, options.config, options.num_processes)


def run_doctor(
    json_output: bool = False, config: str | None = None, num_processes: int | None = None
) -> int:
    """Print what `collect` found.

    Args:
        json_output: Print one JSON object instead of tables.
        config: As for `collect`.
        num_processes: As for `collect`.

    Returns:
        The exit code: 0 when training can work here, 1 when it cannot.
    """
    report = collect(config, num_processes)
    if json_output:
        print(json.dumps(report, indent=2))
    else:
        _print_tables(report, Console())
    return 0 if report["ok"] else 1


def _print_tables(report: dict[str, Any], console: Console) -> None:
    """Print the report for a person."""
    found = Table(title="Found", title_justify="left", show_header=False)
    for name, value in report["found"].items():
        found.add_row(name, value)
    console.print(found, markup=False)
    if report["used"]:
        used = Table("", "value", "because", title="A run would use", title_justify="left")
        for name, choice in report["used"].items():
            used.add_row(name, str(choice["value"]), choice["reason"])
        console.print(used, markup=False)
    for line in report["memory"]:
        style = "bold yellow" if line.startswith("warning") else ""
        console.print(line, style=style, markup=False, highlight=False)
    for problem in report["problems"]:
        console.print(f"Problem: {problem}", style="bold red", markup=False, highlight=False)
    if report["ok"]:
        console.print("Training can run on this machine.", style="green")


def _version(distribution: str) -> str | None:
    """The installed version of a distribution, None if it is absent."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _software(problems: list[str]) -> dict[str, str]:
    """Versions of packages and tools; appends to `problems` what prevents training."""
    return {
        "Python": f"{python_platform.python_version()} ({sys.executable})",
        "Megatron-Core": _megatron(problems),
        "Transformer Engine": _transformer_engine(problems),
        "C compiler": shlex.join(c_compiler()) or _ABSENT,
        "uv": _uv(),
    }


def _megatron(problems: list[str]) -> str:
    """The version of Megatron-Core; the wrong one is a problem."""
    version = _version("megatron-core")
    if version is None:
        problems.append(
            f"megatron-core is not installed, but {_NEEDED_MEGATRON}.* is needed; run make setup."
        )
        return _ABSENT
    if version.split(".")[:2] != _NEEDED_MEGATRON.split("."):
        problems.append(
            f"megatron-core ({version}) must be {_NEEDED_MEGATRON}.*; run make setup, or install "
            f"'megatron-core=={_NEEDED_MEGATRON}.*'."
        )
    return version


def _transformer_engine(problems: list[str]) -> str:
    """The version of Transformer Engine; having only its empty meta package is a problem."""
    version = _version("transformer-engine")
    if version is None:
        return _ABSENT
    # The compiled library is in the core package for one CUDA version. Without it Megatron finds
    # the module, imports it and fails.
    spec = importlib.util.find_spec("transformer_engine")
    folders = [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]
    if not any(_has_core_library(folder) for folder in folders):
        problems.append(
            f"transformer-engine ({version}) is installed without its core library, which breaks "
            "Megatron-Core; install 'transformer-engine[pytorch]' or uninstall transformer-engine."
        )
    return version


def _has_core_library(package: Path) -> bool:
    """Whether the compiled library is in the package's folder or, in some builds, beside it."""
    name = "libtransformer_engine*.so"
    return any(package.rglob(name)) or any(package.parent.glob(name))


def _uv() -> str:
    """The uv that set-up would use; one on PATH may be a shim that does not start."""
    for candidate in ("uv", ".uv/bin/uv"):
        try:
            answer = subprocess.run([candidate, "--version"], capture_output=True, text=True)
        except OSError:
            continue
        if answer.returncode == 0:
            return f"{answer.stdout.strip()} ({shutil.which(candidate)})"
    return _ABSENT


def _hardware() -> dict[str, str]:
    """Cores, memory and disk."""
    cache = default_cache_dir()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "CPU cores": f"{available_cores()} usable of {os.cpu_count()}",
        "memory": _gib(memory),
        "free disk (here)": _gib(shutil.disk_usage(Path.cwd()).free),
        "cache": f"{cache} ({_gib(shutil.disk_usage(_nearest_existing(cache)).free)} free)",
    }


def _torch_facts(found: dict[str, str]) -> set[str]:
    """Describe torch in `found`; returns the communication backends it was built with."""
    import torch
    import torch.distributed as dist

    built_in = {"gloo": dist.is_gloo_available(), "nccl": dist.is_nccl_available()}
    names = [name for name, available in built_in.items() if available]
    found["torch"] = f"{torch.__version__} (CUDA build: {torch.version.cuda or 'none'})"
    found["torch backends"] = ", ".join(names) or "none"
    return set(names)


def _choices(device: Choice[Device]) -> dict[str, dict[str, Any]]:
    """Everything that a run on `device` would choose automatically."""
    choices: dict[str, Choice[Any]] = {
        "device": device,
        "processes": choose_num_processes(device.value),
        "backend": choose_backend(device.value),
        "precision": choose_precision(device.value),
        "transformer": choose_transformer_impl(device.value),
    }
    return {
        name: {
            "value": choice.value if isinstance(choice.value, int) else str(choice.value),
            "reason": choice.reason,
        }
        for name, choice in choices.items()
    }


def _memory(config: str, device: Device, num_processes: int | None) -> list[str]:
    """What the memory of a run would be on `device`."""
    from moe_megatron.config import load_config
    from moe_megatron.run.launch import fitted
    from moe_megatron.run.memory_check import memory_lines

    processes = choose_num_processes(device, num_processes).value
    return memory_lines(fitted(load_config(config), processes), processes, device)


def _nearest_existing(path: Path) -> Path:
    """`path`, or its nearest parent that exists."""
    return next((p for p in (path, *path.parents) if p.exists()), Path("/"))


def _gib(num_bytes: int) -> str:
    """Bytes as GiB."""
    return f"{num_bytes / 2**30:.1f} GiB"
