"""What a run does about its checkpoints once they are written: checksums, and removing old ones.

Both happen in a thread of each rank, so that training does not wait. A checkpoint that cannot be
given checksums is no reason to end a run: it waits for room on a full disk, as long as nobody
waits for it, and then stays unverified.
"""

import logging
import os
import queue
import threading
from dataclasses import replace
from pathlib import Path

from moe_megatron.checkpoint.integrity.retention import (
    RANK,
    VALIDATION_LOSS,
    Keep,
    finish_removals,
    remove,
    surplus,
)
from moe_megatron.checkpoint.integrity.seal import seal_together, unseal
from moe_megatron.config import CheckpointConfig
from moe_megatron.config.checkpoint_files import iteration_dir, step_of
from moe_megatron.config.evaluation import Metric
from moe_megatron.errors import MoEError
from moe_megatron.mcore import world
from moe_megatron.mcore.loop.callbacks import Callback
from moe_megatron.run.best import judged
from moe_megatron.run.history import History
from moe_megatron.telemetry.journal import note

logger = logging.getLogger(__name__)

_NICE = 10
"""The thread gives way to training."""


class Keeper(Callback):
    """Looks after the checkpoints that a run writes.

    Args:
        checkpoints: Folder of the `iter_*` folders.
        config: Which of them to keep.
        loaded: The checkpoint that the run started from, which stays.
        run_dir: Folder of the run, for its journal.
        history: Evaluations of the run so far, on rank 0.
        metric: The value by which a checkpoint is the best, which stays then; None: the loss, and
            only as many stay as the configuration says.
    """

    def __init__(
        self,
        checkpoints: Path,
        config: CheckpointConfig,
        *,
        loaded: Path | None,
        run_dir: Path,
        history: History,
        metric: Metric | None = None,
    ) -> None:
        self._checkpoints = checkpoints
        self._keep = Keep(last=config.keep_last, every=config.keep_every, best=config.keep_best)
        if metric is not None and self._keep != Keep():
            self._keep = replace(self._keep, best=config.keep_best or 1)
        self._metric = metric
        self._patience = config.patience_seconds
        self._loaded, self._run_dir, self._history = loaded, run_dir, history
        self._complete: queue.Queue[tuple[int, dict[str, float]]] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._hurry = threading.Event()

    def on_checkpoint_start(self, step: int) -> None:
        """A checkpoint that is written again has no checksums until it is complete."""
        if world.rank() == 0:
            unseal(iteration_dir(self._checkpoints, step))

    def on_checkpoint_complete(self, step: int) -> None:
        """Hand the checkpoint to the thread."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="checksums", daemon=True)
            self._thread.start()
        self._complete.put((step, self._notes(step)))

    def on_saves_end(self) -> None:
        """Wait until every checkpoint has its checksums."""
        self.settle()

    def settle(self) -> None:
        """Wait until this rank has done its part for every checkpoint, a full disk aside."""
        self._hurry.set()
        self._complete.join()
        self._hurry.clear()

    def _notes(self, step: int) -> dict[str, float]:
        """What the evaluation at a step says of its checkpoint."""
        made = (r for r in reversed(self._history.evaluations) if r.split == "validation")
        record = next((record for record in made if record.step == step), None)
        if record is None:
            return {"step": step}
        notes = {"step": step, VALIDATION_LOSS: record.loss}
        value = None if self._metric is None else judged(record, self._metric)
        if self._metric is not None and value is not None:
            notes[RANK] = -value if self._metric.more_is_better else value
        return notes

    def _work(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while True:
            step, notes = self._complete.get()
            try:
                self._seal(step, notes)
            except (OSError, MoEError) as error:
                logger.warning("the checkpoint of step %d stays unverified: %s", step, error)
            finally:
                self._complete.task_done()

    def _seal(self, step: int, notes: dict[str, float]) -> None:
        folder = iteration_dir(self._checkpoints, step)
        sealed = seal_together(
            folder,
            world.rank(),
            world.size(),
            notes=notes,
            patience=self._patience,
            hurry=self._hurry,
        )
        if sealed:
            self._remove_old(step)

    def _remove_old(self, newest: int) -> None:
        finish_removals(self._checkpoints)
        protected = () if self._loaded is None else (self._loaded,)
        for folder in surplus(self._checkpoints, self._keep, newest, protected):
            remove(folder)
            note(self._run_dir, "removed", step=step_of(folder))
