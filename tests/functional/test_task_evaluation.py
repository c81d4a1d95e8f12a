"""Tasks are evaluated inside a run: exactly, alike under every layout, and until it is enough."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moe_megatron import MoEModel
from moe_megatron.data.held_out import HeldOut
from moe_megatron.data.index import read_tokens
from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE, read_metrics
from moe_megatron.telemetry.values.records import EvalRecord
from moe_megatron.testing.distributed import run_distributed
from moe_megatron.testing.jobs import Job, few_steps, run_on_this_rank

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

STEPS, BATCH, SEQUENCE, VOCAB = 6, 8, 32, 512
SHAPE: dict[str, Any] = {
    **few_steps(STEPS, batch=BATCH),
    "training.eval_interval": 2,
    "training.eval_steps": 2,
    "training.learning_rate": 1e-2,
    "checkpoint.save_interval": 2,
    "data.sequence_length": SEQUENCE,
    "data.split": "80,20,0",
    "data.paths": ("here", "there"),
    "data.tasks": ("first", "second"),
    "evaluation.base": ("elsewhere",),
}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one": (1, {}),
    "ep2": (2, {"parallel.expert_parallel_size": 2}),
    "tp2": (2, {"parallel.tensor_parallel_size": 2}),
    "pp2": (2, {"parallel.pipeline_parallel_size": 2}),
    "cp2": (2, {"parallel.context_parallel_size": 2}),
    "vpp2": (2, {"parallel.pipeline_parallel_size": 2, "parallel.virtual_pipeline_stages": 2,
                 "model.num_layers": 4}),
}  # fmt: skip
ENDINGS: dict[str, dict[str, Any]] = {
    "patience": {"training.learning_rate": 1e-12, "training.min_learning_rate": 0.0,
                 "training.weight_decay": 0.0, "evaluation.patience": 1},
    "forgetting": {"training.learning_rate": 0.5, "evaluation.max_forgetting": 0.01},
}  # fmt: skip


def source(place: Path, number: int) -> Path:
    return place / f"source{number}"


def write_sources(place: Path) -> None:
    """Two tasks with few words each, and a base domain of others."""
    from moe_megatron.mcore.loop.indexed_dataset import open_indexed_dataset

    for number in range(3):
        drawn = np.random.default_rng(number)
        writer = open_indexed_dataset(source(place, number), VOCAB)
        for _ in range(20):
            writer.add_document((drawn.integers(0, 40, size=50) + 100 * number + 1).tolist())
        writer.finalize()


def train(place: Path, name: str, changes: dict[str, Any]) -> None:
    """On every rank."""
    prefixes = [str(source(place, number)) for number in range(3)]
    job = Job(
        run_dir=place / name,
        overrides={**SHAPE, **changes},
        blend=("0.5", prefixes[0], "0.5", prefixes[1]),
        tasks=(0, 1),
        held_out=(
            HeldOut(name="first", number=0, prefixes=(prefixes[0],)),
            HeldOut(name="second", number=1, prefixes=(prefixes[1],)),
            HeldOut(name="base", prefixes=(prefixes[2],), whole=True),
        ),
    )
    run_on_this_rank([job])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, chosen: Callable[[str], list[str]]) -> Path:
    """The sources, and a run of each layout and each ending on them."""
    folder: Path = tmp_path_factory.mktemp("evaluation")
    run_distributed(write_sources, folder, world_size=1)
    for layout in {"one", *chosen("layout")}:
        world_size, changes = LAYOUTS[layout]
        run_distributed(train, folder, layout, changes, world_size=world_size)
    for ending in chosen("ending"):
        run_distributed(train, folder, ending, ENDINGS[ending], world_size=1)
    return folder


def evaluations(run: Path) -> list[EvalRecord]:
    return [it for it in read_metrics(run / METRICS_FILE) if isinstance(it, EvalRecord)]


def by_hand(model: MoEModel, tokens: np.ndarray) -> tuple[float, float, int]:
    """Loss, accuracy and number of tokens of rows, one at a time."""
    loss, right, number = 0.0, 0, 0
    for first in range(0, len(tokens) - 1, SEQUENCE):
        row = torch.from_numpy(tokens[first : first + SEQUENCE + 1].astype(np.int64))
        with torch.no_grad():
            logits = model(row[None, :-1]).logits[0].double()
        wanted = row[1:]
        loss -= float(logits.log_softmax(-1).gather(1, wanted[:, None]).sum())
        right += int((logits.argmax(-1) == wanted).sum())
        number += len(wanted)
    return loss / number, right / number, number


def test_scores_are_those_of_every_held_out_token(place: Path) -> None:
    *_, last = evaluations(place / "one")
    model = MoEModel.from_pretrained(place / "one" / "checkpoints").eval()
    held_out = [read_tokens(source(place, it))[16 * 50 :] for it in (0, 1)]
    assert [it.name for it in last.tasks] == ["first", "second", "base"]
    for score, tokens in zip(last.tasks, held_out, strict=False):
        loss, accuracy, number = by_hand(model, tokens)
        assert score.tokens == number == 199
        assert score.loss == pytest.approx(loss, rel=1e-5)
        assert score.accuracy == pytest.approx(accuracy)
    base = read_tokens(source(place, 2))[: 2 * BATCH * SEQUENCE + 1]  # as many as two batches take
    assert last.tasks[2].loss == pytest.approx(by_hand(model, base)[0], rel=1e-5)
    assert last.loss == pytest.approx(sum(it.loss for it in last.tasks[:2]) / 2)


def test_the_first_evaluation_is_before_the_first_step_and_what_is_trained_gets_better(
    place: Path,
) -> None:
    found = evaluations(place / "one")
    assert [it.step for it in found] == [0, 2, 4, 6]
    first, last = found[0], found[-1]
    assert all(it.kept and set(it.kept) == {1.0} for it in first.tasks)
    assert all(len(it.kept) == len(first.tasks[0].kept) for it in last.tasks)
    assert all(0 <= share <= 1 for it in last.tasks for share in it.kept)
    assert any(share < 1 for it in last.tasks for share in it.kept)
    for before, after in zip(first.tasks[:2], last.tasks, strict=False):
        assert after.loss < before.loss - 1


@pytest.mark.parametrize(
    "layout",
    ["ep2", *(pytest.param(it, marks=pytest.mark.deep) for it in ("tp2", "pp2", "cp2"))],
)
def test_scores_are_the_same_under_every_layout(layout: str, place: Path) -> None:
    pairs = zip(evaluations(place / layout), evaluations(place / "one"), strict=True)
    for ours, theirs in pairs:
        for our, their in zip(ours.tasks, theirs.tasks, strict=True):
            assert our.loss == pytest.approx(their.loss, rel=2e-4 if ours.step else 1e-5)
            assert our.accuracy == pytest.approx(their.accuracy, abs=0.02)
            assert our.kept == pytest.approx(their.kept, abs=0.05)
            assert our.tokens == their.tokens


@pytest.mark.deep
@pytest.mark.parametrize("layout", ["vpp2"])
def test_chunks_of_a_process_share_a_pipeline(layout: str, place: Path) -> None:
    assert [it.step for it in evaluations(place / layout)] == [0, 2, 4, 6]


@pytest.mark.deep
@pytest.mark.parametrize("ending", ["patience", "forgetting"])
def test_a_training_ends_when_it_is_enough(ending: str, place: Path) -> None:
    steps = {"patience": [0, 2], "forgetting": [0, 2]}[ending]
    assert [it.step for it in evaluations(place / ending)] == steps
    saved = sorted((place / ending / "checkpoints").glob("iter_*"))
    assert saved[-1].name == f"iter_{steps[-1]:07d}"


@pytest.mark.deep
def test_patience_goes_on_where_a_run_was_interrupted(place: Path) -> None:
    changes = {**ENDINGS["patience"], "evaluation.patience": 2}
    stopped = {**changes, "megatron.exit-interval": 2}
    run_distributed(train, place, "halved", stopped, world_size=2)
    resumed = {**changes, "checkpoint.load": str(place / "halved" / "checkpoints")}
    run_distributed(train, place, "halved", resumed, world_size=2)
    assert [it.step for it in evaluations(place / "halved")] == [0, 2, 4]
