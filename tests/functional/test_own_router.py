"""From idea to figure, as docs/adding_a_router.md tells it, and what a run keeps of a file."""

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moe_megatron.cli import main, pretrain
from moe_megatron.config import CONFIG_FILE, load_config
from moe_megatron.errors import EXIT_CODE
from moe_megatron.testing.distributed import NO_LAUNCHER, run_distributed
from moe_megatron.testing.jobs import step_records
from tests.functional.scripts import run_as_main

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adding_a_router.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
FILE, *PROGRAM = [block for language, block in BLOCKS if language == "python"]
TRAIN_OURS, TRAIN_THEIRS, RESUME = [
    line
    for language, block in BLOCKS
    if language == "bash"
    for line in block.splitlines()
    if line.startswith("moe-megatron")
]
SMALL = "--config test_tiny --mock-data --train-iters 4 --save-interval 4 --set training.seed=3"
SPREAD = "--set parallel.expert_parallel_size=2"
SHARP = Path("runs") / "sharp"


def words(line: str, *more: str) -> list[str]:
    return [*shlex.split(line)[1:], *(word for text in more for word in text.split())]


def steps_of(run: Path) -> list[int]:
    return [it.step for it in step_records(run)]


def losses_of(run: Path) -> list[float]:
    return [it.loss for it in step_records(run)]


def test_file_of_the_page_is_short() -> None:
    assert len([line for line in FILE.splitlines() if line.strip()]) <= 15


@pytest.fixture(scope="module")
def place(moe: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the page was followed, up to the figure."""
    folder: Path = tmp_path_factory.mktemp("place")
    (folder / "my_router.py").write_text(FILE)
    for line in (TRAIN_OURS, TRAIN_THEIRS):
        # As its ranks do it, which have imported Megatron.
        of_ranks = words(line.replace("train --router", "--router"), SMALL, SPREAD)
        at = of_ranks.index("--num-processes")
        del of_ranks[at : at + 2]
        assert run_distributed(pretrain.main, of_ranks, directory=folder, world_size=2) == [0, 0]
    script = folder / "figure.py"
    script.write_text(FILE + "".join(PROGRAM))
    given: dict[str, Any] = {"directory": folder, "environment": NO_LAUNCHER}
    run_distributed(run_as_main, script, world_size=1, **given)
    return folder


def test_idea_becomes_a_report_and_a_figure(place: Path) -> None:
    assert (place / "sharp.png").read_bytes().startswith(b"\x89PNG")
    report = (place / SHARP / "report.html").read_text()
    assert "my_router.py:sharp" in report
    ours, theirs = losses_of(place / SHARP), losses_of(place / "runs" / "top_k")
    assert len(ours) == len(theirs) == 4
    assert ours[0] != theirs[0]


def test_run_notes_the_file_and_no_folder(place: Path) -> None:
    checkpoint = place / SHARP / "checkpoints" / "iter_0000004"
    for file in (place / SHARP / CONFIG_FILE, checkpoint / CONFIG_FILE):
        router = load_config(file).moe.router
        assert (router.name, router.options) == ("my_router.py:sharp", {"sharpness": 2.0})
        assert len(str(router.sha256)) == 64
        assert str(place / "my_router.py") not in file.read_text()


def answer(line: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What is said to a mistake."""
    assert main.main(line) == EXIT_CODE
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ")
    assert "\n" not in said
    return said


def test_going_on_without_the_file_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the file stands beside, under its name."""
    monkeypatch.chdir(place)
    said = answer(["train", "--resume", str(SHARP), "--train-iters", "6"], capsys)
    assert "Give the file: --router PATH/my_router.py:sharp" in said


def test_going_on_with_a_changed_file_is_refused(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    (tmp_path / "my_router.py").write_text(FILE + "# better\n")
    changed = f"{tmp_path / 'my_router.py'}:sharp"
    noted = load_config(SHARP / CONFIG_FILE).moe.router.sha256
    ways = {
        "router": ["--router", changed],
        "yaml": ["--config", str(tmp_path / "mine.yaml")],
    }
    (tmp_path / "mine.yaml").write_text(
        f"base: test_tiny\nmoe:\n  router: {{name: '{changed}', sharpness: 2.0}}\n"
    )
    for given in ways.values():
        line = ["train", "--resume", str(SHARP), "--num-processes", "2", *given]
        said = answer([*line, *"--mock-data --train-iters 6".split()], capsys)
        assert re.search(f"my_router.py(:sharp)? has changed: .* moe.router.replaces={noted}", said)


HOSTILE = "open('ran', 'w').write('x')\n" + FILE


@pytest.mark.parametrize("note", ["", f", sha256: {'0' * 64}"])
def test_code_that_a_run_folder_names_is_never_loaded(
    note: str,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    shutil.copytree(place / SHARP, run)
    for config in [run / CONFIG_FILE, *run.glob(f"checkpoints/iter_*/{CONFIG_FILE}")]:
        (config.parent / "trap.py").write_text(HOSTILE)
        router = f"  router: {{name: '{config.parent / 'trap.py'}:sharp'{note}}}\n"
        text = re.sub(r"  router:\n(    .*\n)*", lambda _, it=router: it, config.read_text())
        assert "trap.py" in text
        config.write_text(text)
    monkeypatch.chdir(run)
    checkpoint = str(run / "checkpoints" / "iter_0000004")
    for line in (
        ["train", "--resume", str(run)],
        ["train", "--config", str(run / CONFIG_FILE)],
        ["convert", checkpoint, str(tmp_path / "out")],
    ):
        answer(line, capsys)
    for verb in ("inspect", "verify", "report"):
        main.main([verb, str(run) if verb == "report" else checkpoint])
    assert not list(tmp_path.rglob("ran"))


def test_reading_what_was_trained_needs_no_file(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = place / SHARP
    for line in (
        ["inspect", str(run)],
        ["verify", str(run / "checkpoints" / "iter_0000004")],
        ["report", str(run), "--output", str(tmp_path / "report.html")],
    ):
        assert main.main(line) == 0


@pytest.mark.deep
def test_run_goes_on_as_the_page_says(moe: Callable[..., Any], place: Path) -> None:
    """The last test that looks at the run, which is longer afterwards."""
    line = RESUME.replace("400", "6")
    program = moe(place, *words(line, "--num-processes 2"))
    assert program.end() == 0, program.output
    assert steps_of(place / SHARP) == [1, 2, 3, 4, 5, 6]


# --- what is exhaustive ---------------------------------------------------------------------------

LATER = """
import torch
from moe_megatron.routing import Routing

passes = []


def later(logits_TE, *, top_k, training):
    if training and torch.is_grad_enabled():
        passes.append(1)
    weights_TK, indices_TK = logits_TE.softmax(-1).topk(top_k)
    if len(passes) > 2:
        weights_TK = weights_TK * float("nan")
    return Routing.of_indices(indices_TK, weights_TK, logits_TE.shape[-1])
"""
SCRIPT = """
import sys
from pathlib import Path
from moe_megatron import MoEModel
from moe_megatron.distributed import DistributedMoETrainer
from moe_megatron.errors import ConfigError

TEXTS = [f"Document {i}: the quick brown fox, x = {i * i}." for i in range(60)]

def trained(router, folder):
    shape = dict(hidden_size=32, num_experts=4, num_layers=1, num_attention_heads=4, vocab_size=384)
    model = MoEModel(**shape, expert_hidden_size=32, router_type=router)
    sizes = dict(world_size=2, expert_parallel_size=2)
    trainer = DistributedMoETrainer(model, **sizes, tokenizer=sys.argv[1], run_dir=folder)
    return trainer.train(TEXTS, max_steps=3, batch_size=4, sequence_length=32)

assert len(trained("my_router.py:sharp", "runs/trained").losses) == 3
try:
    trained("later.py:later", "runs/later")
except ConfigError as error:
    Path("said.txt").write_text(str(error))
"""


@pytest.mark.deep
def test_trainer_hands_its_processes_the_file_and_takes_its_mistakes_back(
    tmp_path: Path, tokenizer: Path
) -> None:
    files = {"my_router.py": FILE, "later.py": LATER, "script.py": SCRIPT}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    given: dict[str, Any] = {"directory": tmp_path, "environment": NO_LAUNCHER}
    run_distributed(run_as_main, tmp_path / "script.py", [tokenizer], world_size=1, **given)
    said = (tmp_path / "said.txt").read_text()
    assert re.search(r"the router later \(.*later.py, line 8\) returns weights of nan for", said)


@pytest.mark.deep
def test_command_of_the_page_starts_ranks_that_know_the_router(
    moe: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "my_router.py").write_text(FILE)
    program = moe(tmp_path, *words(TRAIN_OURS, SMALL, SPREAD))
    assert program.end() == 0, program.output
    assert steps_of(tmp_path / SHARP) == [1, 2, 3, 4]


@pytest.mark.deep
def test_changed_file_goes_on_on_purpose(
    moe: Callable[..., Any], place: Path, tmp_path: Path
) -> None:
    (tmp_path / "my_router.py").write_text(FILE + "# better\n")
    noted = load_config(place / SHARP / CONFIG_FILE).moe.router.sha256
    purpose = f"--set moe.router.replaces={noted} --train-iters 8 --num-processes 2"
    line = f"moe-megatron train --resume {SHARP} --router {tmp_path}/my_router.py:sharp"
    program = moe(place, *words(line, purpose))
    assert program.end() == 0, program.output
    router = load_config(place / SHARP / CONFIG_FILE).moe.router
    assert (router.replaces, router.options) == (noted, {"sharpness": 2.0})
    assert router.sha256 not in (None, noted)
    assert steps_of(place / SHARP)[-1] == 8
