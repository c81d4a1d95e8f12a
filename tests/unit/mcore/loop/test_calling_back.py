"""Callbacks around the functions of Megatron's loop: what they are told, and that they go away.

The loop's functions are replaced by small ones with the same parameters, as the wrappers see only
calls; the real loop runs in tests/functional.
"""

import inspect
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.training import training as loop

from moe_megatron.mcore.loop.callbacks import Callback, EvaluationEnd, StepEnd
from moe_megatron.mcore.loop.calling_back import callbacks_installed
from moe_megatron.mcore.measure.phases import PhaseClock
from moe_megatron.telemetry.metric import PHASES

WRAPPED = (
    "load_checkpoint",
    "train",
    "train_step",
    "training_log",
    "evaluate",
    "evaluate_and_print_results",
)


class Recorder(Callback):
    def __init__(self, name: str, events: list[Any]) -> None:
        self.name, self.events = name, events

    def on_load_end(self, step: int, seconds: float) -> None:
        self.events.append((self.name, "loaded", step, seconds))

    def on_evaluations_end(self, step: int, seconds: float) -> None:
        self.events.append((self.name, "evaluated", step, seconds))

    def on_train_start(self, model: list[Any], start_step: int) -> None:
        self.events.append((self.name, "start", model, start_step))

    def on_step_start(self, step: int) -> None:
        self.events.append((self.name, "begins", step))

    def on_step_end(self, event: StepEnd) -> None:
        self.events.append((self.name, "step", event))

    def on_evaluation_end(self, event: EvaluationEnd) -> None:
        self.events.append((self.name, "evaluation", event))


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What two callbacks and the loop's own functions do, in order."""
    happened: list[Any] = []

    def record(name: str, result: Any) -> Any:
        def function(*args: Any, **kwargs: Any) -> Any:
            happened.append(("loop", name, args, kwargs))
            return result

        return function

    loss = {"lm loss": torch.tensor(2.0)}
    results: dict[str, Any] = {name: f"result of {name}" for name in WRAPPED}
    results |= {"evaluate": (loss, "collected", False), "load_checkpoint": (4, 1e9)}
    for name in WRAPPED:
        monkeypatch.setattr(loop, name, record(name, results[name]))
    monkeypatch.setattr(loop, "get_args", lambda: SimpleNamespace(iteration=4))
    with callbacks_installed([Recorder("a", happened), Recorder("b", happened)]):
        yield happened


def test_wrapped_functions_have_the_parameters_that_are_read() -> None:
    parameters = list(inspect.signature(loop.training_log).parameters)
    assert parameters[:8] == [
        "loss_dict",
        "total_loss_dict",
        "learning_rate",
        "iteration",
        "loss_scale",
        "report_memory_flag",
        "skipped_iter",
        "grad_norm",
    ]
    parameters = list(inspect.signature(loop.evaluate_and_print_results).parameters)
    assert parameters[:5] == ["prefix", "forward_step_func", "data_iterator", "model", "iteration"]
    assert next(iter(inspect.signature(loop.save_checkpoint_and_time).parameters)) == "iteration"
    assert list(inspect.signature(loop.train).parameters)[:2] == ["forward_step_func", "model"]
    assert list(inspect.signature(loop.train_step).parameters)[6] == "forward_backward_func"


def test_training_starts_after_the_callbacks_were_told(events: list[Any]) -> None:
    model = ["chunk"]
    assert loop.train("forward", model, "optimizer", key=1) == "result of train"
    assert events == [
        ("a", "start", model, 4),
        ("b", "start", model, 4),
        ("loop", "train", ("forward", model, "optimizer"), {"key": 1}),
    ]


def test_step_is_reported_before_megatron_logs_and_clears_it(events: list[Any]) -> None:
    losses = {"lm loss": torch.tensor(3.0)}
    loop.train_step("forward", *"dmosc", lambda: "forward and backward", iteration=4)
    words = (losses, {}, 0.1, 5, 1.0, False, 1, 0.5, None, None)
    assert loop.training_log(*words, is_first_iteration=True) == "result of training_log"
    assert events[:2] == [("a", "begins", 5), ("b", "begins", 5)]
    events = events[2:]
    assert [event[:2] for event in events] == [
        ("loop", "train_step"),
        ("a", "step"),
        ("b", "step"),
        ("loop", "training_log"),
    ]
    end = events[1][2]
    assert (end.step, end.learning_rate, end.grad_norm, end.skipped) == (5, 0.1, 0.5, True)
    assert end.losses is losses
    assert end.seconds >= 0
    assert end.phase_seconds.keys() == {"optimizer", "other"}
    arguments, named = events[0][2:]
    assert (arguments[:6], named) == (("forward", *"dmosc"), {"iteration": 4})
    assert arguments[6]() == "forward and backward"
    assert events[3][2:] == (words, {"is_first_iteration": True})


def test_phases_are_those_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def spend(seconds: float) -> None:
        nonlocal now
        now += seconds

    def train_step(*args: Any, iteration: int) -> None:
        spend(1.0)
        args[6]()
        spend(2.0)

    monkeypatch.setattr(loop, "train_step", train_step)
    monkeypatch.setattr(loop, "training_log", lambda *args: spend(4.0))
    monkeypatch.setattr(loop, "evaluate_and_print_results", lambda *args: spend(8.0))
    happened: list[Any] = []
    clock = PhaseClock(lambda: now)
    with callbacks_installed([Recorder("a", happened)], clock):
        for step in (1, 2):
            loop.train_step(*"fdmosc", lambda: spend(32.0), iteration=step - 1)
            loop.training_log({}, {}, 0.1, step, 1.0, False, 0, 0.5)
            loop.evaluate_and_print_results("", "f", "d", "m", step)
    first, second = [e[2].phase_seconds for e in happened if e[1] == "step"]
    assert first == {"forward_backward": 32.0, "optimizer": 3.0, "other": 0.0}
    assert second == {
        "forward_backward": 32.0,
        "optimizer": 3.0,
        "evaluation": 8.0,
        "telemetry": 0.0,
        "other": 4.0,
    }
    assert second.keys() | {"data", "checkpoint"} == set(PHASES)


@pytest.mark.parametrize(
    ("prefix", "split"),
    [
        ("iteration 6", "validation"),
        ("iteration 6 on validation set", "validation"),
        ("iteration 6 on test set", "test"),
    ],
)
def test_evaluation_knows_its_step_and_split(prefix: str, split: str, events: list[Any]) -> None:
    loop.evaluate_and_print_results(prefix, "forward", "data", "model", 6)
    answer = loop.evaluate("forward")
    end = next(event[2] for event in events if event[1] == "evaluation")
    assert (end.step, end.split, end.losses) == (6, split, answer[0])


def test_evaluations_are_reported_with_their_time(events: list[Any]) -> None:
    answer = loop.evaluate_and_print_results("iteration 6", "forward", "data", "model", 6)
    assert answer == "result of evaluate_and_print_results"
    assert [event[:3] for event in events[1:]] == [("a", "evaluated", 6), ("b", "evaluated", 6)]
    assert all(event[3] >= 0 for event in events[1:])


def test_loaded_step_is_reported_with_the_time(events: list[Any]) -> None:
    assert loop.load_checkpoint("model") == (4, 1e9)
    assert [event[:3] for event in events[1:]] == [("a", "loaded", 4), ("b", "loaded", 4)]
    assert all(event[3] >= 0 for event in events[1:])


def test_evaluation_that_ran_out_of_time_is_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Any] = []
    monkeypatch.setattr(loop, "evaluate", lambda: (None, None, True))
    with callbacks_installed([Recorder("a", events)]):
        assert loop.evaluate() == (None, None, True)
    assert events == []


def fail_inside(before: dict[str, Any]) -> None:
    with callbacks_installed([Callback()]):
        assert all(getattr(loop, name) is not original for name, original in before.items())
        raise RuntimeError("inside")


def test_functions_of_the_loop_come_back_even_after_an_error() -> None:
    before = {name: getattr(loop, name) for name in WRAPPED}
    with pytest.raises(RuntimeError, match="inside"):
        fail_inside(before)
    assert {name: getattr(loop, name) for name in WRAPPED} == before


def test_nested_runs_each_get_their_own_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Any] = []
    monkeypatch.setattr(loop, "load_checkpoint", lambda: (4, 1e9))
    with callbacks_installed([Recorder("outer", events)]):
        with callbacks_installed([Recorder("inner", events)]):
            loop.load_checkpoint()
        loop.load_checkpoint()
    assert [event[0] for event in events] == ["outer", "inner", "outer"]


def test_callback_without_methods_is_one() -> None:
    callback = Callback()
    callback.on_load_end(1, 0.1)
    callback.on_train_start([], 0)
    callback.on_evaluations_end(1, 0.1)
    callback.on_checkpoint_start(1)
    callback.on_checkpoint_end(1)
    callback.on_checkpoint_complete(1)
    callback.on_checkpoint_failed(1, "why")
    callback.on_saves_end()
