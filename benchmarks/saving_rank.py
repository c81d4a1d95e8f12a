"""One rank of a run that saves checkpoints, and whose steps are measured.

Started by ranks.py. The task names a preset, overrides of it, the folder of the run, and
whether checkpoints get checksums.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import ranks
from benchmarks.megatron_rank import Clock
from moe_megatron.config import apply_overrides, load_config
from moe_megatron.mcore import world
from moe_megatron.mcore.loop import engine
from moe_megatron.mcore.loop.callbacks import Callback
from moe_megatron.run.history import History
from moe_megatron.run.keeper import Keeper
from moe_megatron.run.machine import choose_machine
from moe_megatron.run.prepared_data import prepare_data


class Saves(Callback):
    """Seconds that training stands still for each save."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def on_checkpoint_start(self, step: int) -> None:
        """A save begins."""
        self._began = time.perf_counter()

    def on_checkpoint_end(self, step: int) -> None:
        """Training goes on."""
        self.seconds.append(time.perf_counter() - self._began)


class TimedKeeper(Keeper):
    """Says how long a processor worked for the checksums of each checkpoint."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seconds: list[float] = []

    def _seal(self, step: int, loss: float | None) -> None:
        began = time.thread_time()
        super()._seal(step, loss)
        self.seconds.append(time.thread_time() - began)


def main() -> None:
    """Run the task of this rank."""
    task = ranks.task()
    config = apply_overrides(load_config(task["preset"]), task["overrides"])
    data = prepare_data(config, progress=False)
    clock, saves = Clock(), Saves()
    folder = Path(task["folder"])
    callbacks: list[Callback] = [clock, saves]
    keeper = None
    if task["checksums"]:
        keeper = TimedKeeper(
            folder / "checkpoints",
            config.checkpoint,
            loaded=None,
            run_dir=folder,
            history=History(),
        )
        callbacks.append(keeper)
    with tempfile.TemporaryDirectory() as logs:
        job = engine.TrainingJob(
            config=config,
            data_paths=data.paths,
            data_cache=data.cache,
            vocab_size=data.vocab_size,
            end_of_document=data.end_of_document,
            run_dir=folder,
            callbacks=tuple(callbacks),
            megatron_log=Path(logs) / "megatron.log",
        )
        engine.run(job, choose_machine(config).settings)
    if world.rank() == 0:
        checksums = keeper.seconds if keeper else []
        ranks.report({"wall": clock.wall, "saves": saves.seconds, "checksums": checksums})
    world.leave()


if __name__ == "__main__":
    main()
