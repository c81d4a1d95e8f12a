"""One rank of a Megatron contender: trains a preset and measures its steps.

Started by ranks.py. The task names a preset, overrides of it and a mode: "steps" times every step
without telemetry, "telemetry" switches telemetry on and off from step to step, "train" keeps the
losses.
"""

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks import ranks
from benchmarks.turns import Turns
from moe_megatron.config import RunConfig, apply_overrides, load_config
from moe_megatron.data.source import resolve_blend
from moe_megatron.files import default_cache_dir
from moe_megatron.mcore import world
from moe_megatron.mcore.loop import engine
from moe_megatron.mcore.loop.callbacks import Callback, EvaluationEnd, StepEnd
from moe_megatron.mcore.loop.indexed_dataset import open_indexed_dataset
from moe_megatron.mcore.measure.telemetry import TelemetryCallback, attach_routers
from moe_megatron.run.machine import choose_machine
from moe_megatron.telemetry.exporter.prometheus_sink import ExporterOptions, PrometheusSink
from moe_megatron.telemetry.history import HistorySink
from moe_megatron.telemetry.sinks.jsonl import MetricsLog, RoutingLog
from moe_megatron.telemetry.sinks.sink_set import SinkSet


class Clock(Callback):
    """Wall and processor time of every step, from the end of the one before; and the losses."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.processor: list[float] = []
        self.losses: list[float] = []
        self.evaluations: list[dict[str, Any]] = []
        self._last = (0.0, 0.0)
        self._turns = Turns()

    def on_train_start(self, model: list[Any], start_step: int) -> None:
        """Start both clocks."""
        self._turns.begin()
        self._last = (time.perf_counter(), time.process_time())

    def on_step_end(self, event: StepEnd) -> None:
        """Note the step; what comes before the next turn belongs to none."""
        self.losses.append(float(event.losses["lm loss"]))
        now = (time.perf_counter(), time.process_time())
        self.wall.append(now[0] - self._last[0])
        self.processor.append(now[1] - self._last[1])
        self._turns.after_step(event.step)
        self._last = (time.perf_counter(), time.process_time())

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
    """Telemetry that is on in every other step: on off, off on, on off, ..."""

    def __init__(self, telemetry: TelemetryCallback) -> None:
        self._telemetry = telemetry
        self._model: list[Any] = []
        self.on: list[bool] = []
        self._is_on = True

    def on_train_start(self, model: list[Any], start_step: int) -> None:
        """Start the sinks; the first step is measured."""
        self._model = model
        self._telemetry.on_train_start(model, start_step)

    def on_step_end(self, event: StepEnd) -> None:
        """End this step as its kind demands, and prepare the next."""
        self.on.append(self._is_on)
        if self._is_on:
            self._telemetry.on_step_end(event)
        self._is_on = (event.step + 1) % 4 in (1, 0)
        attach_routers(self._model, self._telemetry._counters if self._is_on else None)


def main() -> None:
    """Run the task of this rank."""
    task = ranks.task()
    config = apply_overrides(load_config(task["preset"]), task["overrides"])
    # The engine's own telemetry only averages the loss: what this run measures is added here.
    quiet = dataclasses.replace(
        config, telemetry=dataclasses.replace(config.telemetry, enabled=False)
    )
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        alternating = _alternating(config, Path(folder)) if task["mode"] == "telemetry" else None
        job = engine.TrainingJob(
            config=config if task["mode"] == "train" else quiet,
            data_paths=_data_paths(config),
            data_cache=default_cache_dir() / "megatron",
            vocab_size=config.data.vocab_size,
            end_of_document=0,
            run_dir=None,
            callbacks=(clock,) if alternating is None else (alternating, clock),
            megatron_log=Path(folder) / "megatron.log",
        )
        outcome = engine.run(job, choose_machine(config).settings)
    result = {
        "wall": clock.wall,
        "processor": _summed(clock.processor),
        "losses": clock.losses,
        "evaluations": clock.evaluations,
        "seconds": outcome.seconds,
        "on": alternating.on if alternating else [],
        "parameters": None,
    }
    if world.rank() == 0:
        ranks.report(result)
    world.leave()


def _data_paths(config: RunConfig) -> tuple[str, ...]:
    blend = resolve_blend(config.data, open_indexed_dataset, progress=False)
    pairs = zip(blend.weights, blend.prefixes, strict=True)
    return tuple(word for weight, prefix in pairs for word in (str(weight), str(prefix)))


def _alternating(config: RunConfig, folder: Path) -> AlternatingTelemetry:
    sinks = None
    if world.rank() == 0:
        exporter = PrometheusSink(ExporterOptions(), announce=lambda line: None)
        history = HistorySink(str(folder / "history"))
        sinks = SinkSet([MetricsLog(), RoutingLog(), history, exporter])
    return AlternatingTelemetry(TelemetryCallback(config, sinks, folder))


def _summed(seconds: list[float]) -> list[float]:
    """Processor time of each step over all ranks."""
    total = torch.tensor(seconds, dtype=torch.float64)
    if dist.is_initialized():
        dist.all_reduce(total)
    return [float(value) for value in total]


def _mean(value: float) -> float:
    total = torch.tensor([value], dtype=torch.float64)
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()


if __name__ == "__main__":
    main()
