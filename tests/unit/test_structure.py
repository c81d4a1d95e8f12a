"""Rules about the code base that no linter knows; the import layers are lint-imports' business."""

import ast
import graphlib
import pkgutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.sources import forget_sources, nodes  # noqa: F401 (a fixture)

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "moe_megatron"
ENTRY = ROOT / "pretrain_moe.py"

MAX_LINES = 600
MAX_ENTRY_LINES = 120
# They start in a second on a login node, so nothing they load may load torch either.
WITHOUT_TORCH = (
    "config",
    "telemetry",
    "analytics",
    "dashboards",
    "drawing",
    "webapp",
    "viz",
    "families",
)

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
    silent = [relative(p) for p in OURS if not ast.get_docstring(nodes(p)[0])]
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
    named = [p for p in PACKAGE.rglob("*util*") if p.stem in {"util", "utils"}]
    assert [relative(p) for p in named if "node_modules" not in p.parts] == []


def test_no_file_name_is_used_three_times():
    names = Counter(path.name for path in OURS if path.name != "__init__.py")
    assert [name for name, times in names.items() if times > 2] == []


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in OURS}


def imported(path: Path) -> set[str]:
    """Our modules that a file imports anywhere, but for the type checker alone."""
    unseen = {
        id(inner)
        for node in nodes(path)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    found: set[str] = set()
    for node in nodes(path):
        if id(node) in unseen:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in names}
    return found & MODULES.keys()


def test_no_modules_import_each_other_in_a_circle():
    """Imports inside of functions count: they hide a circle, and do not open it."""
    graph = {name: imported(path) - {name} for name, path in MODULES.items()}
    assert tuple(graphlib.TopologicalSorter(graph).static_order())


NAMED_IN_TEXT = (
    *("moe_megatron/__init__.py", "testing/fork_server.py", "testing/distributed.py"),
    "cli/pretrain.py",
)
"""What names modules in strings: the public names, the modules that ranks of tests import, and what
torchrun starts where there is no checkout."""


def test_no_module_is_named_in_a_string_outside_its_own_package():
    """It would be imported, or started, by an arrow that import-linter does not see."""
    hidden = []
    for module, path in MODULES.items():
        for node in nodes(path):
            if not isinstance(node, ast.Constant) or node.value not in MODULES:
                continue
            its_own = module == node.value or module.startswith(f"{node.value}.")
            if not its_own and not relative(path).endswith(NAMED_IN_TEXT):
                hidden.append(f"{relative(path)}:{node.lineno}")
    assert hidden == []


def test_nothing_is_imported_from_the_root():
    """The root imports public names when they are asked for, from anywhere."""
    hidden = [
        f"{relative(path)}:{node.lineno}"
        for path in OURS
        for node in nodes(path)
        if isinstance(node, ast.ImportFrom) and node.module == "moe_megatron"
        if not all(is_module(alias.name) for alias in node.names)
    ]
    assert hidden == []


def is_module(name: str) -> bool:
    return f"moe_megatron.{name}" in MODULES


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
