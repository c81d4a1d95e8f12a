"""Notes in the journal of a run what an attempt does: its ranks' side of RUN/events.jsonl.

An attempt is one start of the ranks. Steps that the attempt before it made after the checkpoint are
lost; metrics.jsonl still has them when the checkpoint is loaded and is rewound when training
starts, so in between their time is summed up here. It does not know what readers make of it.
"""

import os
import socket
import time
from pathlib import Path
from typing import Any

import psutil

from moe_megatron.mcore import world
from moe_megatron.mcore.loop.callbacks import Callback, StepEnd
from moe_megatron.telemetry.journal import note, read_events
from moe_megatron.telemetry.uptime.steps import lost_after


class AttemptJournal(Callback):
    """The journal of one attempt, on rank 0; on other ranks it does nothing.

    Args:
        run_dir: Folder of the run; None notes nothing.
    """

    def __init__(self, run_dir: Path | None) -> None:
        self._run_dir = run_dir if world.rank() == 0 else None
        self._loaded = self._stepped = False
        self._last_step = 0
        self._save_started = 0.0
        self._waited: dict[int, float] = {}
        """Time for which the loop waited, by the step of a checkpoint that is not complete."""
        self._failed_step: int | None = None
        self.attempt = 1
        """Number of this attempt, from 1."""
        if self._run_dir is not None:
            earlier = (event.kind == "attempt" for event in read_events(self._run_dir))
            self.attempt += sum(earlier)

    def begin(self, *, loads: bool) -> None:
        """The model is about to be built, and then a checkpoint loaded if `loads`."""
        if self._run_dir is not None:
            self._run_dir.mkdir(parents=True, exist_ok=True)
        self._note(
            "attempt",
            attempt=self.attempt,
            world_size=world.size(),
            host=socket.gethostname(),
            pid=os.getpid(),
            started=_started(),
        )
        if not loads and self.attempt > 1:
            self._note_resume(0, 0.0)

    def on_load_end(self, step: int, seconds: float) -> None:
        """Note where the run goes on, and what was made after that and is lost."""
        # Later loads roll back within the attempt: metrics.jsonl then holds what is made again.
        if not self._loaded and not self._stepped:
            self._loaded = True
            self._note_resume(step, seconds)

    def _note_resume(self, step: int, seconds: float) -> None:
        if self._run_dir is None:
            return
        lost, found = lost_after(self._run_dir, step), {}
        if lost is not None:
            found = {
                "reached": lost.reached,
                "reached_at": lost.reached_at,
                "lost_steps": lost.steps,
                "lost_seconds": round(lost.seconds, 3),
            }
        self._note("resumed", step=step, seconds=round(seconds, 3), **found)

    def on_train_start(self, model: list[Any], start_step: int) -> None:
        """Remember where the attempt starts."""
        self._last_step = start_step

    def on_step_end(self, event: StepEnd) -> None:
        """Note the first step, which warms up."""
        self._last_step = event.step
        if not self._stepped:
            self._stepped = True
            self._note("first_step", step=event.step, seconds=round(event.seconds, 3))

    def on_evaluations_end(self, step: int, seconds: float) -> None:
        """Note an evaluation."""
        self._note("evaluated", step=step, seconds=round(seconds, 3))

    def on_checkpoint_start(self, step: int) -> None:
        """Note that a checkpoint is being written."""
        self._save_started = time.perf_counter()
        self._note("saving", step=step)

    def on_checkpoint_end(self, step: int) -> None:
        """Remember for how long the loop waited."""
        self._waited[step] = time.perf_counter() - self._save_started

    def on_checkpoint_complete(self, step: int) -> None:
        """Note the checkpoint."""
        self._failed_step = None
        self._note("saved", step=step, seconds=round(self._waited.pop(step, 0.0), 3))

    def on_checkpoint_failed(self, step: int, reason: str) -> None:
        """Note that there is none, once for each step."""
        seconds = round(self._waited.pop(step, 0.0), 3)
        if step != self._failed_step:
            self._note("save_failed", step=step, seconds=seconds, reason=reason)
        self._failed_step = step

    def end(self, *, interrupted: bool) -> None:
        """Training has ended in order, and all its checkpoints are written."""
        self._note("trained", step=self._last_step, interrupted=interrupted)

    def _note(self, kind: Any, **fields: Any) -> None:
        note(self._run_dir, kind, **fields)


def _started() -> float:
    """When work on the run began: with the process, if a launcher started it for the run."""
    launched = "RANK" in os.environ or "SLURM_PROCID" in os.environ
    return round(psutil.Process().create_time() if launched else time.time(), 3)
