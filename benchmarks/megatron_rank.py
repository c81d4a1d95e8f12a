"""One rank of a Megatron contender: trains a preset and measures its steps.

Started by ranks.py; `measure` is for processes that were started by others. The task names a
preset, overrides of it and a mode: "steps" times every step without telemetry, "telemetry" switches
telemetry on and off from step to step, "train" keeps the losses.
"""

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks import ranks
from benchmarks.deadline import Deadline
from benchmarks.own_time import END, OwnTime
from benchmarks.turns import Turns
from moe_megatron.config import RunConfig, apply_overrides, load_config
from moe_megatron.mcore import world
from moe_megatron.mcore.loop import engine
from moe_megatron.mcore.loop.callbacks import Callback, EvaluationEnd, StepEnd
from moe_megatron.mcore.measure.rank_load import ComputeTimer
from moe_megatron.mcore.measure.telemetry import TelemetryCallback, attach_routers
from moe_megatron.run.machine import choose_machine
from moe_megatron.run.prepared_data import prepare_data
from moe_megatron.telemetry.exporter.prometheus_sink import ExporterOptions, PrometheusSink
from moe_megatron.telemetry.history import HistorySink
from moe_megatron.telemetry.sinks.jsonl import MetricsLog, RoutingLog
from moe_megatron.telemetry.sinks.sink_set import SinkSet


class Clock(Callback):
    """Wall and processor time of every step, from the end of the one before; and the losses."""

    def __init__(self, *, waits_for_device: bool = False) -> None:
        self.wall: list[float] = []
        self.processor: list[float] = []
        self.losses: list[float] = []
        self.evaluations: list[dict[str, Any]] = []
        self._last = (0.0, 0.0)
        self._turns = Turns()
        self._waits = waits_for_device and torch.cuda.is_available()

    def on_train_start(self, model: list[Any], start_step: int) -> None:
        """Start both clocks."""
        self._turns.begin()
        self._last = self._now()

    def on_step_end(self, event: StepEnd) -> None:
        """Note the step, and begin the next."""
        self.note(event)
        self.restart(event.step)

    def note(self, event: StepEnd) -> None:
        """Note a step that has ended."""
        self.losses.append(float(event.losses["lm loss"]))
        now = self._now()
        self.wall.append(now[0] - self._last[0])
        self.processor.append(now[1] - self._last[1])

    def restart(self, step: int) -> None:
        """Begin the step after this one; what came between, such as others' turns, is in none."""
        self._turns.after_step(step)
        self._last = self._now()

    def _now(self) -> tuple[float, float]:
        """Wall and processor time, when the device has done what it was told."""
        if self._waits:
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    def on_train_end(self, model: list[Any]) -> None:
        """Let the others go."""
        self._turns.end()

    def on_evaluation_end(self, event: EvaluationEnd) -> None:
        """Note the loss of this rank's part, to be averaged over ranks, and the time."""
        self.evaluations.append(
            {
                "step": event.step,
                "split": event.split,
                "loss": _mean(float(event.losses["lm loss"])),
                "seconds": sum(self.wall),
            }
        )


class AlternatingTelemetry(Callback):
    """Telemetry that is on in every other step: on off, off on, on off, ...

    All that telemetry does for a step, and nothing of it, falls into steps in which it is on. What
    a run does at the end of the step that follows is done at the beginning of the next step that is
    on: reading the totals and handing them to the sinks, whose thread works during that step.
    """

    def __init__(self, telemetry: TelemetryCallback, clock: Clock) -> None:
        self._telemetry = telemetry
        self._clock = clock
        self._model: list[Any] = []
        self._is_on = True
        self.on: list[bool] = []
        self.own = OwnTime()
        """What telemetry's own code takes in the steps that have it on."""

    def on_train_start(self, model: list[Any], start_step: int) -> None:
        """Start the sinks and the clock; the first step is measured."""
        self._model = model
        self._telemetry.on_train_start(model, start_step)
        self._clock.on_train_start(model, start_step)

    def on_step_end(self, event: StepEnd) -> None:
        """End this step as its kind demands, note its time, and begin the next as its own does."""
        self.on.append(self._is_on)
        if self._is_on:
            with self.own.of(END):
                self._telemetry.on_step_end(event)
        self._clock.note(event)
        if self._is_on:
            sinks = self._telemetry._sinks
            self.own.take(None if sinks is None else sinks._thread)
        is_on = (event.step + 1) % 4 in (1, 0)
        if is_on != self._is_on:
            self._is_on = is_on
            self._switch()
        self._clock.restart(event.step)
        if is_on:
            with self.own.of(END):
                self._telemetry.flush()

    def _switch(self) -> None:
        """Take counters and timers off the model, or put them on; belongs to no step."""
        telemetry = self._telemetry
        attach_routers(self._model, telemetry._counters if self._is_on else None)
        if telemetry._timer is not None:
            telemetry._timer.remove()
        telemetry._timer = ComputeTimer(self._model) if self._is_on else None

    def on_train_end(self, model: list[Any]) -> None:
        """Publish the last step."""
        self._telemetry.on_train_end(model)
        self._clock.on_train_end(model)

    def close(self) -> None:
        """Let the sinks finish and release what they hold."""
        if self._telemetry._sinks is not None:
            self._telemetry._sinks.close()


def main() -> None:
    """Run the task of this rank."""
    result = measure(ranks.task())
    if world.rank() == 0:
        ranks.report(result)
    world.leave()


def measure(task: Mapping[str, Any]) -> dict[str, Any]:
    """Train and measure; on every rank.

    Args:
        task: "preset", "overrides" of it, "mode", and where a run shall end by itself "seconds",
            from now on.

    Returns:
        Seconds of each step by the clock of the wall and summed over ranks by that of the
        processor, losses, evaluations, whether telemetry was on, and what its own code took in the
        steps that had it on, by part and summed over ranks.
    """
    config = apply_overrides(load_config(task["preset"]), task["overrides"])
    # The engine's own telemetry only averages the loss: what this run measures is added here.
    quiet = dataclasses.replace(
        config, telemetry=dataclasses.replace(config.telemetry, enabled=False)
    )
    data = prepare_data(config, progress=False)
    alternates = task["mode"] == "telemetry"
    clock = Clock(waits_for_device=alternates)
    callbacks: list[Callback] = [clock]
    with tempfile.TemporaryDirectory() as folder:
        alternating = _alternating(config, Path(folder), clock) if alternates else None
        if alternating is not None:
            callbacks = [alternating]
        if "seconds" in task:
            callbacks.append(Deadline(task["seconds"]))
        job = engine.TrainingJob(
            config=config if task["mode"] == "train" else quiet,
            data_paths=data.paths,
            data_cache=data.cache,
            vocab_size=data.vocab_size,
            end_of_document=data.end_of_document,
            run_dir=None,
            callbacks=tuple(callbacks),
            megatron_log=Path(folder) / "megatron.log",
        )
        with alternating.own.watching_routers() if alternating else contextlib.nullcontext():
            outcome = engine.run(job, choose_machine(config).settings)
        if alternating is not None:
            alternating.close()
    return {
        "wall": clock.wall,
        "processor": _summed(clock.processor),
        "losses": clock.losses,
        "evaluations": clock.evaluations,
        "seconds": outcome.seconds,
        "on": alternating.on if alternating else [],
        "own": {
            part: _summed(seconds)
            for part, seconds in (alternating.own.steps if alternating else {}).items()
        },
        "parameters": None,
    }


def _alternating(config: RunConfig, folder: Path, clock: Clock) -> AlternatingTelemetry:
    sinks = None
    if world.rank() == 0:
        exporter = PrometheusSink(ExporterOptions(), announce=lambda line: None)
        history = HistorySink(str(folder / "history"))
        sinks = SinkSet([MetricsLog(), RoutingLog(), history, exporter])
    return AlternatingTelemetry(TelemetryCallback(config, sinks, folder), clock)


def _summed(seconds: list[float]) -> list[float]:
    """Processor time of each step over all ranks."""
    total = torch.tensor(seconds, dtype=torch.float64, device=world.device())
    if dist.is_initialized():
        dist.all_reduce(total)
    return [float(value) for value in total]


def _mean(value: float) -> float:
    total = torch.tensor([value], dtype=torch.float64, device=world.device())
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()


if __name__ == "__main__":
    main()
