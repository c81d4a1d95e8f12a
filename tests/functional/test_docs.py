"""README and docs say nothing that is not so: what they name exists, what they show runs.

Names are taken from code spans and code blocks only; prose is not parsed.
"""

import argparse
import ast
import importlib.util
import inspect
import json
import re
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from moe_megatron.cli.main import usage
from moe_megatron.config import list_presets, load_config
from moe_megatron.config.conform import _choices, annotations_of, group_of, ranges_of
from moe_megatron.config.fields import settings_of
from moe_megatron.config.flags import RULES
from moe_megatron.config.named import Named
from moe_megatron.config.run import SECTIONS, RunConfig
from moe_megatron.experts import expert_names, find_expert
from moe_megatron.routing import find_router, router_names
from moe_megatron.testing.distributed import NO_LAUNCHER, run_distributed
from tests.functional.scripts import run_as_main, train_small_demo

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "moe_megatron"
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
SCRIPTS = [path for path in (ROOT / "examples" / "slurm").iterdir() if path.is_file()]
README = (ROOT / "README.md").read_text()

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FLAG = re.compile(r"(?<![\w-])--([a-z][a-z0-9-]*)")
_FILE = re.compile(r"^[\w./-]+\.(?:py|yaml|toml|sh|txt|md)$")
_FIELD = re.compile(r"^(\w+)\.(\w+)$")
_OF_A_RUN = ("RUN/", "runs/", "my_")
_PLANNED = {
    "run/owner.py",
    "platform/parent.py",
    "platform/slurm/",
    "checkpoint/integrity/",
    "mcore/recovery/",
}
"""What decision 11 announces and may not be there yet."""


def code_of(page: Path) -> list[str]:
    """Every code span and every line of a code block."""
    text = page.read_text()
    lines = [line for _, block in _BLOCK.findall(text) for line in block.splitlines()]
    return lines + _SPAN.findall(_BLOCK.sub("", text))


def named(pattern: str) -> set[str]:
    """What a pattern finds in the code of all pages."""
    return {m for page in PAGES for code in code_of(page) for m in re.findall(pattern, code)}


def ids(page: Path) -> str:
    return str(page.relative_to(ROOT))


# --- what the pages show, runs --------------------------------------------------------------


def run_program(text: str, folder: Path) -> None:
    """Run a Python program in a folder, as the only process that was started."""
    script = folder / "example.py"
    script.write_text(text)
    given: dict[str, Any] = {"directory": folder, "environment": NO_LAUNCHER, "world_size": 1}
    run_distributed(run_as_main, script, **given)


@pytest.mark.deep
@pytest.mark.slow
@pytest.mark.distributed
def test_first_python_example_runs_as_printed(tmp_path: Path) -> None:
    example, *others = [block for language, block in _BLOCK.findall(README) if language == "python"]
    assert len([line for line in example.splitlines() if line.strip()]) < 10
    run_program("".join([example, *others]), tmp_path)
    assert {"my_model", "routing.html", "runs"} <= {path.name for path in tmp_path.iterdir()}
    runs = sorted((tmp_path / "runs").iterdir())
    assert len(runs) == README.count(".train("), "a training in one process, in two, of an adapter"
    for run in runs:
        assert {"config.yaml", "metrics.jsonl", "routing.jsonl"} <= {p.name for p in run.iterdir()}


@pytest.fixture(scope="module")
def after_make_train(
    corpus: Path, tokenizer: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with the run that pages read."""
    folder = tmp_path_factory.mktemp("docs")
    given = {"environment": NO_LAUNCHER | {"MOE_MEGATRON_CACHE": str(cache)}, "world_size": 1}
    run_distributed(train_small_demo, corpus, tokenizer, directory=folder, **given)
    return folder


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("page", "files"),
    [
        ("analytics.md", {"affinity.png", "domains.png", "routing_profile.json"}),
        ("pictures.md", {"curves.pdf", "experts.gif", "plane.png"}),
        ("telemetry.md", {"runs"}),
    ],
)
@pytest.mark.deep
def test_python_examples_that_read_a_run_run(
    page: str, files: set[str], after_make_train: Path, tmp_path: Path
) -> None:
    (tmp_path / "runs").symlink_to(after_make_train / "runs")
    run_page(page, tmp_path)
    assert files <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.distributed
@pytest.mark.parametrize("page", ["experts.md", "data.md"])
def test_python_examples_of_the_page_run(page: str, tmp_path: Path) -> None:
    run_page(page, tmp_path)


def run_page(page: str, folder: Path) -> None:
    """Run the Python examples of a page in their order, as one program."""
    blocks = _BLOCK.findall((ROOT / "docs" / page).read_text())
    run_program("".join(block for language, block in blocks if language == "python"), folder)


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_python_examples_do_not_depend_on_what_is_there(page: Path) -> None:
    """An example that leaves itself out where a file is missing cannot fail."""
    examples = [
        block for language, block in _BLOCK.findall(page.read_text()) if language == "python"
    ]
    assert [
        it for it in examples if re.search(r"^\s*(if|while) .*exists\(", it, re.MULTILINE)
    ] == []


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_python_examples_import_what_exists(page: Path) -> None:
    for language, block in _BLOCK.findall(page.read_text()):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("moe_megatron"):
                module = importlib.import_module(node.module or "")
                missing = [name.name for name in node.names if not hasattr(module, name.name)]
                assert missing == [], node.module


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_yaml_examples_are_configurations(page: Path, tmp_path: Path) -> None:
    for language, block in _BLOCK.findall(page.read_text()):
        if language == "yaml":
            (tmp_path / "example.yaml").write_text(block)
            load_config(tmp_path / "example.yaml").validate()


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_json_examples_are_json(page: Path) -> None:
    for language, block in _BLOCK.findall(page.read_text()):
        if language == "json":
            for line in block.splitlines():
                json.loads(line)


# --- what the pages name, exists ------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_pages_are_ascii(page: Path) -> None:
    assert page.read_bytes().isascii()


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_between_pages_resolve(page: Path) -> None:
    for link in _LINK.findall(page.read_text()):
        target, _, anchor = link.partition("#")
        if "://" in target:
            continue
        file = page.parent / target if target else page
        assert file.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in slugs, link


def test_every_page_is_reached_from_the_readme() -> None:
    reached, pages = set[Path](), [ROOT / "README.md"]
    while pages:
        page = pages.pop()
        if page.suffix == ".md" and page not in reached:
            reached.add(page)
            links = (link.partition("#")[0] for link in _LINK.findall(page.read_text()))
            pages += [(page.parent / link).resolve() for link in links if "://" not in link]
    assert [ids(page) for page in PAGES if page not in reached] == []


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named(r"(?:^|[ '])make ([a-z][a-z-]*)") - targets == set()


def test_verbs_of_the_command_exist() -> None:
    verbs = set(re.findall(r"^  (\w+)  +", usage(), re.MULTILINE))
    assert named(r"moe-megatron ([a-z]+)") - verbs == set()


def test_presets_exist() -> None:
    found = named(r"(?:--config[ =]|PRESET=|base: |preset )([a-z]\w*)(?![\w./])")
    assert found - {"my_run"} - set(list_presets()) == set()


def test_every_preset_is_described() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert [name for name in list_presets() if f"`{name}`" not in page] == []


def _our_flags() -> set[str]:
    """Options of our commands and benchmarks, from the code that declares them."""
    folders = (PACKAGE / "cli", ROOT / "benchmarks")
    sources = (path for folder in folders for path in folder.rglob("*.py"))
    return {
        flag for path in sources for flag in re.findall(r'"--([a-z][a-z-]*)"', path.read_text())
    }


def _slurm_flags() -> set[str]:
    """Options of the commands of SLURM, from the scripts that use them."""
    return {flag for path in SCRIPTS for flag in _FLAG.findall(path.read_text())}


def _torchrun_flags() -> set[str]:
    from torch.distributed.run import get_args_parser

    parser: argparse.ArgumentParser = get_args_parser()
    return {
        option.removeprefix("--").replace("_", "-")
        for action in parser._actions
        for option in action.option_strings
    }


def test_flags_are_ours_or_megatrons_or_torchruns() -> None:
    from moe_megatron.mcore.loop.arguments import known_flags

    megatron = {flag.removeprefix("--") for flag in known_flags()}
    assert (
        named(_FLAG.pattern) - megatron - _our_flags() - _torchrun_flags() - _slurm_flags() == set()
    )


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_files_of_the_project_exist(page: Path) -> None:
    names = [span for span in code_of(page) if "/" in span and _FILE.match(span)]
    ours = [name for name in names if not name.startswith(_OF_A_RUN) and name not in _PLANNED]
    # Short for a file of the package, as in `mcore/layers/measured_router.py`.
    places = (ROOT, PACKAGE)
    assert [n for n in ours if not any((place / n).exists() for place in places)] == []


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_folders_of_the_project_exist(page: Path) -> None:
    names = [span for span in code_of(page) if re.fullmatch(r"[a-z][\w/]*/", span)]
    ours = [name for name in names if not name.startswith(_OF_A_RUN) and name not in _PLANNED]
    assert [n for n in ours if not any((place / n).is_dir() for place in (ROOT, PACKAGE))] == []


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_modules_of_the_package_exist(page: Path) -> None:
    for name in {m for code in code_of(page) for m in re.findall(r"moe_megatron(?:\.\w+)+", code)}:
        module, _, attribute = name.rpartition(".")
        if importlib.util.find_spec(module) is None:
            pytest.fail(f"{name}: there is no {module}")
        if importlib.util.find_spec(name) is None:
            assert hasattr(importlib.import_module(module), attribute), name


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_dotted_fields_exist(page: Path) -> None:
    known = {key: {field.name for field in fields(kind)} for key, kind in SECTIONS.items()}
    for span in code_of(page):
        match = _FIELD.match(span)
        if match and match[1] in known and match[2] not in {"py", "md", "yaml"}:
            assert match[2] in known[match[1]], span


def test_environment_variables_are_read() -> None:
    others = ("tools/setup.sh", "Makefile", "moe_megatron/webapp/frontend/vite.config.ts")
    sources = [*PACKAGE.rglob("*.py"), *SCRIPTS, *(ROOT / name for name in others)]
    code = "\n".join(path.read_text() for path in sources)
    assert [name for name in named(r"\b(MOE_[A-Z_]+)\b") if name not in code] == []


# --- the table of fields --------------------------------------------------------------------


def _meanings(kind: type) -> dict[str, str]:
    """The text under each field of a dataclass, those of its bases among them."""
    found: dict[str, str] = {}
    for base in kind.__bases__:
        found |= _meanings(base) if is_dataclass(base) else {}
    (definition,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(definition, ast.ClassDef)
    name = ""
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and name:
            found[name], name = " ".join(str(node.value.value).split()), ""
    return found


def _router_meanings(name: str) -> dict[str, str]:
    """What the documentation of a router's function says about each of its arguments."""
    router = find_router(name)
    if router.options.__name__ in vars(inspect.getmodule(router.function) or object):
        return _meanings(router.options)
    return _argument_meanings(router.function)


def _argument_meanings(documented: Any) -> dict[str, str]:
    arguments = (inspect.getdoc(documented) or "").partition("Args:")[2]
    arguments = arguments.partition("\n\n")[0]
    found = re.findall(r"^    (\w+): (.*(?:\n     .*)*)", arguments, re.MULTILINE)
    return {argument: " ".join(text.split()) for argument, text in found}


def _own_experts() -> list[str]:
    """Kinds of experts of the package; other tests register some, too."""
    named = (name for name in expert_names() if name != "mlp")
    return [it for it in named if find_expert(it).place.startswith("moe_megatron.")]


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, Named):
        return value.name
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else str(value)


# Fields that become flags by rules of their own.
_OTHER_FLAGS = {
    "data.paths": ["data-path"],
    "data.weights": ["data-path"],
    "training.precision": ["bf16", "fp8-format"],
}


def chapters() -> dict[str, type]:
    """Chapters of docs/configuration.md with a table of fields: sections, groups, routers."""
    found: dict[str, type] = dict(SECTIONS)
    for section, kind in SECTIONS.items():
        for setting in settings_of(kind):
            if (group := group_of(setting.annotation)) is not None:
                found[".".join((section, *setting.path))] = group
    for name in router_names():
        found[f"moe.router: {name}"] = find_router(name).options
    for name in _own_experts():
        found[f"moe.expert: {name}"] = find_expert(name).options
    return found


def field_rows(chapter: str) -> list[str]:
    """The lines that docs/configuration.md must hold for a chapter."""
    kind = chapters()[chapter]
    section = chapter.partition(":")[0]
    choice = chapter.partition(": ")[2]
    if section == "moe.expert":
        meanings = _argument_meanings(find_expert(choice).build)
    else:
        meanings = _router_meanings(choice) if choice else _meanings(kind)
    rows = []
    for field in fields(kind):
        assert field.default is not MISSING
        name = f"{section}.{field.name}"
        flags = _OTHER_FLAGS.get(name) or [rule.flag for rule in RULES if rule.field == name]
        said = ", ".join(f"`--{flag}`" for flag in flags) or "-"
        meaning = meanings[field.name].replace("|", "\\|")
        if choices := _choices(annotations_of(kind)[field.name]):
            meaning += f" One of {', '.join(f'`{choice}`' for choice in choices)}."
        if (limits := ranges_of(kind).get(field.name)) is not None:
            meaning += f" {str(limits).capitalize()}."
        rows.append(f"| `{field.name}` | `{_shown(field.default)}` | {said} | {meaning} |")
    return rows


@pytest.mark.parametrize("name", [*chapters()])
def test_configuration_page_lists_the_fields_of(name: str) -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    chapter = re.search(rf"^### {name}$(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL)
    assert chapter is not None
    rows = [line for line in chapter[1].splitlines() if line.startswith("| `")]
    assert rows == field_rows(name)


def test_configuration_page_names_what_stands_beside_the_sections() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    others = [field.name for field in fields(RunConfig) if field.name not in SECTIONS]
    assert [name for name in others if f"`{name}`" not in page] == []


def test_telemetry_page_names_every_field_of_its_records() -> None:
    from moe_megatron.telemetry.values.profile import RoutingProfile
    from moe_megatron.telemetry.values.records import EvalRecord, StepRecord
    from moe_megatron.telemetry.values.snapshot import RoutingSnapshot

    page = (ROOT / "docs" / "telemetry.md").read_text()
    kinds = (RoutingSnapshot, RoutingProfile, StepRecord, EvalRecord)
    names = {field.name.removesuffix("_mean") for kind in kinds for field in fields(kind)}
    assert sorted(name for name in names if f"`{name}`" not in page) == []


def test_cpu_page_lists_every_accelerator_in_a_table_near_its_top() -> None:
    from moe_megatron.mcore.cpu.fast import ACCELERATORS

    page = (ROOT / "docs" / "megatron_on_cpu.md").read_text()
    first_chapter = page.split("\n## ")[1]
    assert re.findall(r"^\| `(\w+)` \|", first_chapter, re.MULTILINE) == [*ACCELERATORS]


def test_architecture_page_lists_every_package() -> None:
    page = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    packages = [path.parent.name for path in PACKAGE.glob("*/__init__.py")]
    assert [name for name in packages if f"`{name}/`" not in page] == []
