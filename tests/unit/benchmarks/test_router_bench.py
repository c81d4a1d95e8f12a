"""`moe-megatron bench`: real trainings of a tiny model, resumed, refused and drawn."""

import json
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from moe_megatron.benchmarks import corpus, crew
from moe_megatron.benchmarks.case import cases_of
from moe_megatron.benchmarks.setup import Setup
from moe_megatron.cli.main import main
from moe_megatron.data.demo_corpus import write_demo_corpus
from moe_megatron.errors import EXIT_CODE, INTERRUPTED
from moe_megatron.mcore.world import leave

OWN = """
import os, signal
from moe_megatron.routing import Routing

def sharp(logits_TE, *, top_k: int, sharpness: float = 2.0):
    flag = os.environ.get("STOP_THE_BENCH", "")
    if flag and os.path.exists(flag) and len(logits_TE) > 32:
        os.unlink(flag)
        os.kill(os.getpid(), signal.SIGINT)
    weights_TK, indices_TK = (sharpness * logits_TE).softmax(-1).topk(top_k)
    return Routing.of_indices(indices_TK, weights_TK, logits_TE.shape[-1])

def broken(logits_TE, *, top_k: int):
    return logits_TE.no_such_method()
"""
TINY = """
--steps 4 --num-layers 1 --hidden-size 16 --expert-hidden-size 16 --batch-size 2
--sequence-length 32 --train-characters 20000 --held-out 4 --jobs 1
""".split()


class Page(HTMLParser):
    """Fails on tags that close in the wrong order; collects attributes that could load things."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in {"meta", "br"}:
            self.open.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module", autouse=True)
def world() -> Iterator[None]:
    """Trainings leave their process group open for the next one."""
    yield
    leave()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus of a small part of the library, which is read in no time."""
    folder = tmp_path_factory.mktemp("corpus")
    part = Path(sysconfig.get_path("stdlib")) / "email"
    write_demo_corpus(folder, library=part)
    return folder


@pytest.fixture
def bench(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., int]]:
    """The command in an empty folder, where `own.py` holds routers."""
    monkeypatch.setattr(corpus, "corpus_folder", lambda: library)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    crew._corpus.cache_clear()
    yield lambda *words: main(["bench", *words, *TINY, "--out", "results"])
    crew._corpus.cache_clear()


@pytest.mark.deep
def test_bench_compares_routers_goes_on_where_it_was_and_refuses_another_setup(
    bench: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("routers", "--routers", "top_k,own.py:sharp", "--seeds", "2", "--turns", "1")
    runs = tmp_path / "results" / "runs"
    flag = tmp_path / "flag"
    monkeypatch.setenv("STOP_THE_BENCH", str(flag))
    flag.touch()
    assert bench(*words) == INTERRUPTED
    assert [it.name for it in runs.iterdir()] == ["top_k-e8-seed1.json"]
    assert "the same command goes on" in capsys.readouterr().err
    before = (runs / "top_k-e8-seed1.json").stat().st_mtime_ns

    assert bench(*words) == 0
    shown = capsys.readouterr()
    assert (runs / "top_k-e8-seed1.json").stat().st_mtime_ns == before
    assert len(list(runs.iterdir())) == 4
    assert shown.err.count("seed") == 3
    assert re.search(r"^\| own\.py:sharp +\|", shown.out, re.M)
    record = json.loads((runs / "own-py-sharp-e8-seed2.json").read_text())
    assert record["experts_per_token"] == 2.0
    assert record["causal_gap"] == 0.0
    assert len(record["case"]["sha256"]) == 64

    check_page((tmp_path / "results" / "bench.html").read_text(), ["own.py:sharp", "top_k"])
    report = (tmp_path / "results" / "bench.md").read_text()
    assert "n = 2" in report
    assert str(tmp_path) not in report
    assert bench(*words) == 0  # nothing is left to do
    assert "seed" not in capsys.readouterr().err

    assert bench(*words, "--top-k", "1") == EXIT_CODE
    assert "top k (2 there, 1 now)" in capsys.readouterr().err
    (tmp_path / "own.py").write_text(OWN.replace("2.0", "3.0"))
    assert bench(*words) == EXIT_CODE
    assert "is the result of" in capsys.readouterr().err


def check_page(html: str, labels: list[str]) -> None:
    page = Page()
    page.feed(html)
    assert page.open == []
    assert page.references == []
    assert not re.search(r"https?://|@import|url\(", html)
    assert html.isascii()
    for label in labels:
        assert f'<th scope="row">{label}</th>' in html
        assert f"<h3>{label}</h3>" in html
    assert "Held-out loss, less that of top_k" in html


def test_a_step_time_takes_few_steps_and_little_text_of_the_same_model() -> None:
    short = Setup(hidden_size=32, top_k=4).shortened()
    assert short.steps < 50
    assert short.train_characters < 1_000_000
    same = {"steps": 300, "train_characters": 4_000_000}
    assert replace(short, **same) == Setup(hidden_size=32, top_k=4)
    assert Setup(steps=4, train_characters=100).shortened() == Setup(steps=4, train_characters=100)


def test_a_bench_of_all_routers_leaves_out_those_that_go_by_sources() -> None:
    names = {case.name for case in cases_of([], {}, [8])}
    assert {"hash", "top_k"} <= names
    assert "specialised" not in names


def test_bench_of_experts_adds_parameters_and_no_work(
    bench: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("experts", "--experts", "4,8", "--seeds", "1", "--turns", "0") == 0
    assert "one seed alone" in capsys.readouterr().out
    few, many = (
        json.loads((tmp_path / f"results/runs/top_k-e{n}-seed1.json").read_text()) for n in (4, 8)
    )
    assert few["experts_per_token"] == many["experts_per_token"] == 2.0
    assert many["parameters"] - few["parameters"] == 4 * (3 * 16 * 16 + 16)  # experts, gate's rows


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["routers", "--routers", "topk"], "there is no router 'topk'. Did you mean 'top_k'"),
        (["routers", "--routers", "top_k,top_k"], "the router 'top_k' is named twice"),
        (
            ["routers", "--routers", "own.py:broken"],
            "own.py, line 13.* raises AttributeError: .*line 14",
        ),
        (["routers", "--routers", "top_k", "--router-arg", "x.y=1"], "option of 'x', which is not"),
        (["routers", "--router-arg", "threshold=1"], "does not say whose option it is"),
        (["routers", "--experts", "8,16"], "takes one number of experts"),
        (["experts", "--experts", "eight"], "--experts needs numbers of at least 1"),
        (["experts", "--experts", "8,8"], "names a number twice"),
        (["routers", "--routers", ""], "--routers names none"),
        (["routers", "--routers", ", "], "leave it out for all"),
        (["experts", "--routers", "relu,hash"], "takes one router"),
        (["routers", "--routers", "grouped", "--top-k", "1"], "'grouped' cannot be trained here"),
        (["routers", "--seeds", "0"], "--seeds .0. must be 1 to 31"),
        (["routers", "--turns", "0", "--only-step-time"], "leaves nothing to do"),
        (["router"], "invalid choice: 'router'"),
    ],
)
def test_bench_answers_a_mistake_in_one_paragraph_and_makes_nothing(
    words: list[str],
    message: str,
    bench: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert bench(*words) == EXIT_CODE
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert re.search(message, error)
    assert not (tmp_path / "results").exists()


def test_bench_leaves_folders_of_others_and_names_damaged_files(
    bench: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("routers", "--routers", "top_k", "--seeds", "1", "--turns", "0")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "thesis.tex").write_text("mine")
    assert bench(*words) == EXIT_CODE
    assert "is no folder of a bench" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "results")
    assert bench(*words) == 0
    file = tmp_path / "results/runs/top_k-e8-seed1.json"
    for text in (file.read_text()[:40], "[]", "{}"):
        file.write_text(text)
        capsys.readouterr()
        assert bench(*words) == EXIT_CODE
        assert "top_k-e8-seed1.json" in capsys.readouterr().err


@pytest.mark.deep
def test_bench_in_processes_gives_what_it_gives_in_one(tmp_path: Path) -> None:
    results: dict[str, Any] = {}
    for jobs in ("1", "2"):
        out = tmp_path / jobs
        words = ["bench", "routers", "--routers", "top_k,relu", "--seeds", "1", "--turns", "0"]
        subprocess.run(
            ["moe-megatron", *words, *TINY, "--jobs", jobs, "--out", str(out)],
            check=True,
            env={**os.environ, "PATH": f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"},
        )
        files = sorted((out / "runs").glob("*.json"))
        assert len(files) == 2
        results[jobs] = [{**json.loads(it.read_text()), "seconds": 0} for it in files]
    assert results["1"] == results["2"]
