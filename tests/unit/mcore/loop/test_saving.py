"""What callbacks hear of saves; saves that fail are in tests/functional/test_full_disk.py."""

from typing import Any

import pytest
from megatron.training import training as loop

from moe_megatron.mcore.loop.callbacks import Callback
from moe_megatron.mcore.loop.saving import Saves
from moe_megatron.mcore.measure.phases import PhaseClock


class Recorder(Callback):
    def __init__(self, name: str, events: list[Any]) -> None:
        self.name, self.events = name, events

    def on_checkpoint_start(self, step: int) -> None:
        self.events.append((self.name, "start", step))

    def on_checkpoint_end(self, step: int) -> None:
        self.events.append((self.name, "end", step))

    def on_checkpoint_complete(self, step: int) -> None:
        self.events.append((self.name, "complete", step))

    def on_saves_end(self) -> None:
        self.events.append((self.name, "saves end"))


def test_checkpoint_is_announced_and_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Any] = []
    seconds = iter((0.0, 1.0, 17.0, 20.0))
    clock = PhaseClock(lambda: next(seconds))

    def save_checkpoint_and_time(step: int, *args: Any, **kwargs: Any) -> None:
        events.append((step, *args, kwargs))

    monkeypatch.setattr(loop, "save_checkpoint_and_time", save_checkpoint_and_time)
    saves = Saves([Recorder("a", events), Recorder("b", events)], clock, None, 0.0)
    with saves.watched():
        loop.save_checkpoint_and_time(8, "model", data="data")
    assert events == [
        *(("a", "start", 8), ("b", "start", 8)),
        (8, "model", {"data": "data"}),
        *(("a", "end", 8), ("b", "end", 8)),
        *(("a", "complete", 8), ("b", "complete", 8)),
        *(("a", "saves end"), ("b", "saves end")),
    ]
    assert clock.lap() == {"checkpoint": 16.0, "other": 4.0}


def fail_inside(before: dict[str, Any]) -> None:
    with Saves([], PhaseClock(), None, 0.0).watched():
        assert all(getattr(loop, name) is not original for name, original in before.items())
        raise RuntimeError("inside")


def test_functions_of_the_loop_come_back_even_after_an_error() -> None:
    names = ("save_checkpoint", "save_checkpoint_and_time", "maybe_finalize_async_save")
    before = {name: getattr(loop, name) for name in names}
    with pytest.raises(RuntimeError, match="inside"):
        fail_inside(before)
    assert {name: getattr(loop, name) for name in names} == before
