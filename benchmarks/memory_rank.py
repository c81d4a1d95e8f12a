"""One rank of a run whose memory is measured: trains on mock data, saves, and says when.

Started by ranks.py. The task names a preset, overrides of it and the folder of the run.
"""

import contextlib
import time
from pathlib import Path
from typing import Any

from benchmarks import ranks
from moe_megatron.config import apply_overrides, load_config
from moe_megatron.mcore import world
from moe_megatron.mcore.loop import engine
from moe_megatron.mcore.loop.callbacks import Callback, StepEnd
from moe_megatron.run.machine import choose_machine


class Phases(Callback):
    """Notes when each part of the run begins."""

    def __init__(self) -> None:
        self.begins: list[tuple[str, float]] = []
        self.parameters = 0
        self.begin("start")

    def begin(self, name: str) -> None:
        """A part begins, and the one before it ends."""
        self.begins.append((name, time.monotonic()))

    def on_train_start(self, model: list[Any], start_step: int) -> None:
        """The model is built and loaded."""
        self.parameters = sum(p.numel() for chunk in model for p in chunk.parameters())
        self.begin("train")

    def on_step_end(self, event: StepEnd) -> None:
        """From the second step on the optimizer has all of its states."""
        if self.begins[-1][0] != "after":
            self.begin("train")

    def on_checkpoint_start(self, step: int) -> None:
        """A save begins."""
        self.begin("save")

    def on_checkpoint_end(self, step: int) -> None:
        """It has ended, or goes on in the background."""
        self.begin("after")


def main() -> None:
    """Run the task of this rank."""
    task = ranks.task()
    config = apply_overrides(load_config(task["preset"]), task["overrides"])
    if task["gathered"]:
        for name in ("saving_own_shards", "writing_in_place"):
            setattr(engine, name, contextlib.nullcontext)
    phases = Phases()
    folder = Path(task["folder"])
    job = engine.TrainingJob(
        config=config,
        data_paths=(),
        data_cache=folder.parent / "mock_data",
        vocab_size=config.data.vocab_size,
        end_of_document=0,
        run_dir=folder,
        callbacks=(phases,),
        megatron_log=folder / f"megatron{world.rank()}.log",
    )
    engine.run(job, choose_machine(config).settings)
    phases.begin("end")
    if world.rank() == 0:
        ranks.report({"begins": phases.begins, "parameters": phases.parameters})
    world.leave()


if __name__ == "__main__":
    main()
