"""A process that trains alone leaves a long step or evaluation when it is asked to stop.

The step is long because its router sleeps for an hour. What is left behind is what would have been
there before the step, to the bit: a run that goes on from it ends as one that was never stopped.
"""

import logging
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_megatron import MoEModel, MoETrainer
from moe_megatron.config import apply_overrides, load_config
from moe_megatron.config.flags import split_flags
from moe_megatron.errors import AGAIN, INTERRUPTED
from moe_megatron.mcore import world
from moe_megatron.mcore.loop.callbacks import Callback
from moe_megatron.routing import Routing, register_router
from moe_megatron.telemetry.sinks.jsonl import (
    METRICS_FILE,
    ROUTING_FILE,
    read_metrics,
    read_routing,
)
from moe_megatron.telemetry.values.records import EvalRecord, StepRecord
from moe_megatron.testing.distributed import run_distributed

pytestmark = pytest.mark.distributed

STEPS, LAYERS, MICRO_BATCHES = 4, 2, 2
CALLS = LAYERS * MICRO_BATCHES
"""Calls of the router in one step."""
SETTINGS: dict[str, Any] = {
    "training.train_steps": STEPS,
    "training.warmup_steps": 1,
    "training.micro_batch_size": 2,
    "training.global_batch_size": 2 * MICRO_BATCHES,
    "training.eval_interval": None,
    "moe.router": "sleepy",
    "checkpoint.save_interval": 100,
    "telemetry.history": False,
    "telemetry.console": False,
    **split_flags(["--mock-data", "--hidden-dropout", "0.1"]),
}
EVALUATES = {"training.eval_interval": 2, "training.eval_steps": 2}


@dataclass
class Run:
    """A run that is sent signals in the middle of a step, in which it then sleeps."""

    step: int = 0
    """The step in which that happens, of the steps of this attempt; 0: in none."""
    signals: tuple[signal.Signals, ...] = (signal.SIGTERM,)
    evaluating: bool = False
    """In the evaluation after that step instead."""
    settings: dict[str, Any] = field(default_factory=dict)
    resumes: str = ""


RUNS = {
    "whole": Run(),
    "left": Run(step=3),
    "now": Run(step=2, signals=(signal.SIGINT, signal.SIGINT)),
    "resumed": Run(resumes="left"),
    "saved already": Run(
        step=3, signals=(signal.SIGINT,), settings={"checkpoint.save_interval": 2}
    ),
    "at once": Run(step=1),
    "evaluating": Run(step=2, evaluating=True, settings=EVALUATES),
    "evaluating at the end": Run(step=4, evaluating=True, settings=EVALUATES),
}


class Sleep:
    """When the router sleeps."""

    run = Run()
    calls = 0

    @classmethod
    def count(cls, training: bool) -> None:
        due = cls.run.step * CALLS if cls.run.evaluating else (cls.run.step - 1) * CALLS + 3
        cls.calls += training
        if cls.run.step and cls.calls == due and training is not cls.run.evaluating:
            for number in cls.run.signals:
                os.kill(os.getpid(), number)
            time.sleep(3600)


@register_router("sleepy")
def route(logits_TE: torch.Tensor, *, top_k: int, training: bool) -> Routing:
    Sleep.count(training)
    weights_TK, indices_TK = logits_TE.softmax(-1).topk(top_k)
    return Routing.of_indices(indices_TK, weights_TK, logits_TE.shape[-1])


class Saves(Callback):
    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_checkpoint_start(self, step: int) -> None:
        self.steps.append(step)


class Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@dataclass(frozen=True)
class End:
    exit_code: int
    interrupted: bool
    steps: int
    saves: list[int]
    losses: list[Any]
    routing: list[Any]
    evaluations: list[tuple[str, int]]
    messages: list[str]
    summary: str


def train(folder: Path) -> dict[str, Any]:
    """Make the runs in this process, one after another, and one from Python."""
    from moe_megatron.mcore.loop import stopping
    from moe_megatron.run.ending import conclude
    from moe_megatron.run.prepared_data import PreparedData
    from moe_megatron.run.start import Attachments, start

    stopping.PATIENCE_SECONDS = 0.2
    messages = Messages()
    logging.getLogger("moe_megatron.mcore").addHandler(messages)
    world.join("gloo")
    ends: dict[str, Any] = {}
    data = PreparedData(
        paths=(), cache=folder / "mock_data", vocab_size=512, end_of_document=0
    )  # its indices take a while to build
    for name, run in RUNS.items():
        loads = (
            {"checkpoint.load": str(folder / run.resumes / "checkpoints")} if run.resumes else {}
        )
        given = {**SETTINGS, **run.settings, **loads, "run_dir": str(folder / name)}
        Sleep.run, Sleep.calls, saves, messages.texts = run, 0, Saves(), []
        config = apply_overrides(load_config("test_tiny"), given)
        try:
            result = start(config, data=data, attached=Attachments(callbacks=[saves]))
        except KeyboardInterrupt:
            ends[name] = "KeyboardInterrupt"
            continue
        records = list(read_metrics(folder / name / METRICS_FILE))
        routing = read_routing(folder / name / ROUTING_FILE)
        ends[name] = End(
            exit_code=result.exit_code,
            interrupted=result.outcome.interrupted,
            steps=result.outcome.steps,
            saves=saves.steps,
            losses=[(r.step, r.loss, r.grad_norm) for r in records if isinstance(r, StepRecord)],
            routing=[snapshot.tokens_per_expert.tolist() for snapshot in routing],
            evaluations=[(r.split, r.step) for r in records if isinstance(r, EvalRecord)],
            messages=messages.texts,
            summary="" if result.outcome.steps else conclude(result),
        )
    ends["trainer"] = train_from_python(folder / "trainer")
    ends["handlers"] = [signal.getsignal(it) for it in (signal.SIGTERM, signal.SIGURG)]
    world.leave()
    return ends


def train_from_python(run_dir: Path) -> tuple[bool, int, bool]:
    Sleep.run, Sleep.calls = Run(step=3), 0
    shape = {"hidden_size": 64, "num_attention_heads": 4, "expert_hidden_size": 64}
    model = MoEModel(num_experts=4, num_layers=LAYERS, router_type="sleepy", **shape)
    before = [parameter.clone() for parameter in model.parameters()]
    overrides = {"training.micro_batch_size": 1, "telemetry.console": False}
    trainer = MoETrainer(model, run_dir=run_dir, overrides=overrides)
    result = trainer.train(["a few words"] * 99, batch_size=2, sequence_length=32, max_steps=4)
    moved = any(not torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    return result.interrupted, result.steps, moved


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    [ends] = run_distributed(train, tmp_path_factory.mktemp("stopping"), world_size=1, timeout=120)
    return ends


@pytest.mark.parametrize("name", ["left", "saved already"])
def test_a_long_step_is_left_and_the_steps_before_it_are_saved(name, ends):
    end = ends[name]
    assert (end.exit_code, end.interrupted, end.steps) == (AGAIN, True, 2)
    assert end.saves == [2]  # once, whether the interval or the stop has saved it
    assert end.losses == ends["whole"].losses[:2]
    assert end.routing == ends["whole"].routing[:2]
    assert end.messages == [
        "stopping after this step, left if it takes 0.2 s (a second Ctrl-C stops now, without "
        "saving)",
        "step 3 takes long and is left: the run ends after step 2",
    ]


def test_a_run_that_goes_on_ends_as_if_it_had_not_been_stopped(ends):
    assert ends["resumed"].steps == STEPS
    assert ends["resumed"].losses == ends["whole"].losses[2:]
    assert ends["resumed"].routing == ends["whole"].routing[2:]
    assert ends["resumed"].messages == []


def test_a_stop_in_the_first_step_saves_nothing(ends):
    end = ends["at once"]
    assert (end.exit_code, end.interrupted, end.steps) == (INTERRUPTED, True, 0)
    assert (end.saves, end.losses) == ([], [])
    assert end.summary == "stopped within the first step; nothing was saved"


def test_a_long_evaluation_is_left_and_the_run_saved(ends):
    end = ends["evaluating"]
    assert (end.exit_code, end.interrupted, end.steps, end.saves) == (AGAIN, True, 2, [2])
    assert end.evaluations == []
    assert end.messages[1:] == ["the evaluation takes long and is left out: the run was stopped"]
    end = ends["evaluating at the end"]
    assert (end.exit_code, end.steps, end.saves) == (0, STEPS, [STEPS])
    assert end.evaluations == [("validation", 2)]


def test_a_second_ctrl_c_ends_the_run_now(ends):
    assert ends["now"] == "KeyboardInterrupt"


def test_a_model_has_the_weights_of_the_steps_before_the_one_left(ends):
    assert ends["trainer"] == (True, 2, True)
    assert ends["handlers"] == [signal.SIG_DFL, signal.SIG_DFL]
