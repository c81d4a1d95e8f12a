"""Rules about the code base that no linter knows; the import layers are lint-imports' business."""

import ast
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "moe_megatron"
ENTRY = ROOT / "pretrain_moe.py"

MAX_LINES = 600
MAX_ENTRY_LINES = 120
# They start in a second on a login node, so nothing they load may load torch either.
WITHOUT_TORCH = ("config", "telemetry", "analytics", "dashboards", "webapp", "viz")

OURS = sorted(PACKAGE.rglob("*.py"))
ALL = [
    *OURS,
    *sorted((ROOT / "tests").rglob("*.py")),
    *sorted((ROOT / "tools").rglob("*.py")),
    *ROOT.glob("*.py"),
]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def loaded_after(statement: str) -> set[str]:
    """Top-level modules of a fresh interpreter after `statement`."""
    code = f"{statement}\nimport sys; print(*sorted({{m.partition('.')[0] for m in sys.modules}}))"
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(answer.stdout.split())


def test_import_of_the_package_loads_neither_torch_nor_megatron():
    assert loaded_after("import moe_megatron").isdisjoint({"torch", "megatron"})


@pytest.mark.parametrize("package", [p for p in WITHOUT_TORCH if (PACKAGE / p).is_dir()])
def test_import_of_every_module_of_a_light_package_loads_no_torch(package):
    names = [f"moe_megatron.{package}"] + [
        module.name
        for module in pkgutil.walk_packages([str(PACKAGE / package)], f"moe_megatron.{package}.")
        if not module.name.endswith("__main__")
    ]
    loaded = loaded_after(f"import {', '.join(names)}")
    assert loaded.isdisjoint({"torch", "megatron", "transformers"}), names


def test_every_module_says_what_it_is():
    silent = [relative(p) for p in OURS if not ast.get_docstring(ast.parse(p.read_text()))]
    assert silent == []


def test_files_are_ascii():
    assert [relative(p) for p in ALL if not p.read_bytes().isascii()] == []


def test_files_are_short():
    sizes = {relative(p): len(p.read_text().splitlines()) for p in ALL}
    assert {name: size for name, size in sizes.items() if size > MAX_LINES} == {}


def test_entry_script_is_a_page():
    if ENTRY.exists():
        assert len(ENTRY.read_text().splitlines()) <= MAX_ENTRY_LINES


def test_no_folder_or_module_is_called_utils():
    assert [relative(p) for p in PACKAGE.rglob("*util*") if p.stem in {"util", "utils"}] == []


def test_requirements_hold_what_set_up_installs_the_package_with():
    """An editable install without build isolation needs setuptools among the requirements."""
    base = (ROOT / "requirements" / "base.txt").read_text()
    assert "\nsetuptools==" in base


@pytest.mark.parametrize(
    "path", sorted((ROOT / "requirements").glob("*.txt")), ids=lambda p: p.name
)
def test_requirements_name_no_index_and_hash_every_package(path):
    text = path.read_text()
    assert "://" not in text
    assert "index" not in text
    packages = [line for line in text.splitlines() if line and not line.startswith((" ", "#"))]
    assert packages
    assert all("==" in line and line.endswith("\\") for line in packages)
