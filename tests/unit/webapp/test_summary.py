"""What a summary tells of a run, as it stands in the plain report."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from moe_megatron.telemetry.catalog import registered
from moe_megatron.telemetry.quantity import Quantity
from moe_megatron.telemetry.sinks.jsonl import MetricsLog
from moe_megatron.telemetry.values.records import EvalRecord, RunInfo, StepRecord
from moe_megatron.telemetry.values.task_scores import TaskScore
from moe_megatron.webapp.calls import answer
from moe_megatron.webapp.run_reader import RunReader
from moe_megatron.webapp.summary_tables import own_experts

MakeRunDir = Callable[..., Path]


def summary_of(run_dir: Path) -> dict[str, Any]:
    found = answer(RunReader(run_dir), "summary", {})
    assert not isinstance(found, bytes)
    return dict(found)


def table_of(run_dir: Path, title: str) -> dict[str, Any]:
    found: dict[str, Any] = next(it for it in summary_of(run_dir)["tables"] if it["title"] == title)
    return found


def routers_of(run_dir: Path) -> dict[str, list[str]]:
    """The rows of the table of routers, by what they measure."""
    return {row[0]: row[1:] for row in table_of(run_dir, "Routers")["rows"]}


def test_facts_are_those_of_the_records(make_run_dir: MakeRunDir) -> None:
    facts = {it["name"]: (it["value"], it["note"]) for it in summary_of(make_run_dir())["facts"]}
    assert facts == {
        "model": ("2 MoE layers of 4 experts, top-1", ""),
        "steps": ("40", "of 40 planned"),
        "tokens": ("40,000", "0 min 20 s of training"),
        "training loss": ("8.000", "best step 8.000"),
        "validation loss": ("5.000", "step 40"),
        "validation perplexity": ("148.41", "step 40"),
        "tokens per second": ("2,000", "median of the steps"),
        "imbalance": ("1.50", "max over mean load, whole run, worst layer"),
    }


def test_routers_at_the_start_and_at_the_end(make_run_dir: MakeRunDir) -> None:
    rows = routers_of(make_run_dir())
    note = "1 is perfect balance; a layer waits for its busiest expert."
    ends = ["1", "1.5", "1 (layer 3)", "2 (layer 2)"]
    assert rows["Imbalance (max over mean load)"] == [*ends, note]
    assert list(rows)[1:] == [
        "Router entropy (relative to its maximum)",
        "Load balancing loss (unscaled)",
        "Router z-loss (unscaled)",
    ]


def test_drops_and_experts_per_token_are_told_where_there_is_something(
    make_run_dir: MakeRunDir,
) -> None:
    dropped = routers_of(make_run_dir(lost=5))["Dropped assignments (share of all)"]
    assert dropped[:2] == ["0.1111", "0.1111"]
    varied = routers_of(make_run_dir(beyond=8, name="varied"))["Experts per token"]
    assert varied[0] == "1.25"
    assert varied[-1] == "The target is 1; dropped assignments are included."


MARGIN = Quantity(
    name="margin",
    help="Best less second best score.",
    title="Margin of the choice",
    unit="nats",
    note="It grows as routers get sure.",
    derive=lambda sums: sums.means["entropy"],
)


def test_registered_quantity_has_its_title_and_an_unknown_one_its_name(
    make_run_dir: MakeRunDir,
) -> None:
    run_dir = make_run_dir(margin=0.625)
    with registered(MARGIN):
        known = routers_of(run_dir)["Margin of the choice (nats)"]
    assert known == ["0.625", "0.625", "0.625 (layer 2)", "0.625 (layer 2)", MARGIN.note]
    assert routers_of(run_dir)["margin"][0] == "0.625"
    layers = answer(RunReader(run_dir), "layers", {})
    assert not isinstance(layers, bytes)
    assert layers["more"][-1]["values"] == [[0.625] * 40] * 2


def test_dead_experts_are_those_of_the_last_hundred_steps(make_run_dir: MakeRunDir) -> None:
    dead = table_of(make_run_dir(205), "Dead experts")
    assert dead["says"] == "Experts that received no token in steps 106 to 205."
    assert dead["rows"] == [["2", "1 of 4", "0.50x", "1"]]
    healthy = table_of(make_run_dir(healthy=True, name="fine"), "Dead experts")
    assert healthy["says"] == "None: every expert received tokens in steps 1 to 40."
    assert healthy["rows"] == []


def test_model_without_experts_has_facts_and_no_table_of_routers(make_run_dir: MakeRunDir) -> None:
    run_dir = make_run_dir()
    (run_dir / "routing.jsonl").unlink()
    found = summary_of(run_dir)
    assert found["facts"][0]["value"] == "no routing was measured"
    assert found["tables"] == []


@contextmanager
def log_of(run_dir: Path) -> Iterator[MetricsLog]:
    log = MetricsLog()
    log.start(RunInfo(run_dir=run_dir, total_steps=4, start_step=0, num_layers=1, num_experts=1,
                      top_k=1, world_size=1, layers=(), description=""))  # fmt: skip
    yield log
    log.close()


def step(number: int, loss: float, *, skipped: bool = False, seconds: float = 1.0) -> StepRecord:
    return StepRecord(step=number, loss=loss, learning_rate=None, grad_norm=None, tokens=10,
                      step_seconds=seconds, total_steps=4, skipped=skipped)  # fmt: skip


def test_losses_that_are_none_and_steps_that_were_skipped(tmp_path: Path) -> None:
    with log_of(tmp_path / "run") as log:
        for it in (step(1, 2.0), step(2, math.nan, skipped=True), step(3, 3.0, seconds=0.5)):
            log.step(it, None)
    facts = {it["name"]: (it["value"], it["note"]) for it in summary_of(tmp_path / "run")["facts"]}
    assert facts["training loss"] == ("3.000", "best step 2.000")
    assert facts["skipped steps"] == ("1", "gradient was not finite")
    assert facts["tokens per second"] == ("10", "median of the steps")
    with log_of(tmp_path / "lost") as log:
        log.step(step(1, math.nan), None)
    facts = {it["name"]: (it["value"], it["note"]) for it in summary_of(tmp_path / "lost")["facts"]}
    assert facts["training loss"] == ("nan", "never finite")


def test_tasks_before_and_after_and_their_accuracy(tmp_path: Path) -> None:
    def judged(number: int, code: float, prose: float) -> EvalRecord:
        tasks = (
            TaskScore(name="code", tokens=40, loss=code, accuracy=0.25, kept=(0.9, 0.5)),
            TaskScore(name="prose", tokens=60, loss=prose),
        )
        return EvalRecord(step=number, split="validation", loss=code, tasks=tasks)

    with log_of(tmp_path / "run") as log:
        log.evaluation(judged(0, 4.0, 2.0))
        log.step(step(1, 2.0), None)
        log.evaluation(judged(1, 2.0, 3.0))
    assert table_of(tmp_path / "run", "Tasks")["rows"] == [
        ["code", "40", "4.000 -> 2.000 (-2.000)", "54.6 -> 7.4", "25.0% -> 25.0%",
         "70.0% (least 50.0%)"],
        ["prose", "60", "2.000 -> 3.000 (+1.000)", "7.4 -> 20.1", "-", "-"],
    ]  # fmt: skip
    (chart,) = summary_of(tmp_path / "run")["charts"]
    assert (chart["steps"], chart["lines"]) == ([0, 1], {"code": [0.25, 0.25]})


def test_the_expert_that_is_most_a_tasks_own_is_named() -> None:
    by_task = {
        "code": np.array([[5, 5, 0], [0, 0, 10]]),
        "prose": np.array([[5, 5, 0], [6, 4, 0]]),
    }
    assert own_experts((1, 3), by_task)["rows"] == [
        ["code", "50.0%", "layer 3, expert 2", "100.0%", "50.0%"],
        ["prose", "50.0%", "layer 3, expert 0", "60.0%", "30.0%"],
    ]
