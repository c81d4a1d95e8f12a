"""Writes the generated files into a folder, or says how the folder differs from them."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

GENERATED = ("dashboards/*.json", "provisioning/*/*.yml", "prometheus/*.yml", "prometheus/*/*.yml")
"""Where everything is generated: other files there are left over."""


def write_files(folder: Path, files: Mapping[PurePosixPath, str]) -> list[Path]:
    """Write what differs; returns what was written."""
    written = []
    for name, text in files.items():
        path = folder / name
        if _read(path) != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            written.append(path)
    return written


def differences(folder: Path, files: Mapping[PurePosixPath, str]) -> list[str]:
    """How a folder differs from what would be written."""
    faults = []
    for name, text in files.items():
        found = _read(folder / name)
        if found is None:
            faults.append(f"{folder / name} is missing; run moe-megatron grafana build")
        elif found != text:
            faults.append(
                f"{folder / name} is not what the code writes; run moe-megatron grafana build and "
                "commit the result"
            )
    known = {folder / name for name in files}
    present = {path for pattern in GENERATED for path in folder.glob(pattern)}
    faults += [f"{path} is written by no code; remove it" for path in sorted(present - known)]
    return faults


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
