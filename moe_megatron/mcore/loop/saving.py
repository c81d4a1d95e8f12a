"""Saves of a run, which goes on if one fails: it says so, and the next interval tries again.

A save has failed if any rank could not write its part, if there is no room for it, or if a callback
could not write beside it. All ranks agree on that before the checkpoint counts: only then is the
tracker file written. What was written of a failed one is removed. The last save of a run waits for
room, within bounds. This module knows when Megatron saves, and not what it writes.
"""

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron.training import async_utils, ft_integration, get_args
from megatron.training import training as loop
from torch.distributed.checkpoint.api import CheckpointException

from moe_megatron.config.checkpoint_files import iteration_dir, tracked_step
from moe_megatron.errors import AGAIN, NoRoomError
from moe_megatron.mcore import world
from moe_megatron.mcore.measure.phases import PhaseClock
from moe_megatron.mcore.state.checkpoint import why_not_written
from moe_megatron.mcore.state.unwritten import Unwritten
from moe_megatron.platform.disk import room_problem, size_of_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from moe_megatron.mcore.loop.callbacks import Callback

logger = logging.getLogger(__name__)

_PAUSE_SECONDS = 5.0


class Saves:
    """The saves of one run.

    Args:
        callbacks: Are told of them.
        clock: Measures them.
        folder: Folder of the `iter_*` folders; None for a run that is not to survive failed ones.
        patience: For how many seconds the last save is tried again.
    """

    def __init__(
        self,
        callbacks: "Sequence[Callback]",
        clock: PhaseClock,
        folder: Path | None,
        patience: float,
    ) -> None:
        self._callbacks = tuple(callbacks)
        self._clock, self._folder, self._patience = clock, folder, patience
        self._unwritten = Unwritten(folder or Path())
        self._unfinished: list[int] = []
        """Steps whose checkpoints are being written, oldest first."""
        self._raised = self._is_over = False
        self._again: Callable[[], None] = lambda: None
        self._failed: tuple[int, str, int] | None = None
        """The last save, if it has failed: its step, the reason, and how many samples were used."""
        self._needed = 0
        """Size of the last checkpoint, in bytes."""

    @contextmanager
    def watched(self) -> "Iterator[None]":
        """Stand around Megatron's saves for as long as the context is open."""
        with ExitStack() as stack:
            if self._folder is not None:
                stack.enter_context(self._unwritten.watching())
            for name in (
                "save_checkpoint",
                "save_checkpoint_and_time",
                "maybe_finalize_async_save",
            ):
                original = getattr(loop, name)
                stack.callback(setattr, loop, name, original)
                setattr(loop, name, getattr(self, f"_{name}")(original))
            stack.callback(self._forget)
            yield
            for callback in self._callbacks:
                callback.on_saves_end()

    def _forget(self) -> None:
        """Let go of the model and the data, which the last save was given."""
        self._again = lambda: None

    def _save_checkpoint_and_time(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def save_checkpoint_and_time(step: int, *args: Any, **kwargs: Any) -> None:
            if kwargs.get("non_persistent_ckpt"):
                original(step, *args, **kwargs)
                return
            self._again = partial(self._save, original, step, *args, **kwargs)
            self._again()
            if self._is_over and self._folder is not None:
                loop.maybe_finalize_async_save(blocking=True)
                self._insist()

        return save_checkpoint_and_time

    def _save(self, original: Callable[..., Any], step: int, *args: Any, **kwargs: Any) -> None:
        with self._clock.measure("checkpoint"):
            if _number_in_background():  # one at a time: each may need a copy of the model
                loop.maybe_finalize_async_save(blocking=True)
            if reason := self._prepare(step):
                self._fail(step, reason)
                return
            self._tell("on_checkpoint_start", step)
            original(step, *args, **kwargs)
            if not self._raised:
                self._tell("on_checkpoint_end", step)
            self._raised = False
            self._unfinished.append(step)
            self._settle()

    def _prepare(self, step: int) -> str:
        """Make the folder of a checkpoint on rank 0; returns, on all, why that is no use, or ""."""
        if self._folder is None:
            return ""
        if world.rank() == 0:
            with self._unwritten.noted(step):
                if problem := room_problem(self._folder, self._needed):
                    self._unwritten.add(step, problem)
                else:
                    iteration_dir(self._folder, step).mkdir(exist_ok=True)
        return world.agree_on_text(self._unwritten.take(step))

    def _tell(self, method: str, step: int) -> None:
        for callback in self._callbacks:
            with self._unwritten.noted(None if self._folder is None else step):
                getattr(callback, method)(step)

    def _save_checkpoint(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def save_checkpoint(step: int, *args: Any, **kwargs: Any) -> None:
            try:
                original(step, *args, **kwargs)
            except CheckpointException as error:  # on every rank
                if self._folder is None or kwargs.get("non_persistent_ckpt"):
                    raise
                self._raised = True
                self._unwritten.add(step, why_not_written(error, self._folder))
                ft_integration.on_checkpointing_end(is_async_finalization=False)

        return save_checkpoint

    def _maybe_finalize_async_save(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def maybe_finalize_async_save(*args: Any, terminate: bool = False, **kwargs: Any) -> None:
            while True:
                try:
                    original(*args, terminate=terminate, **kwargs)
                    break
                except CheckpointException as error:  # on every rank; the others may be well
                    if self._folder is None or not self._unfinished:
                        raise
                    reason = why_not_written(error, self._folder)
                    self._unwritten.add(self._unfinished[0], reason)
                    self._settle()
            self._settle()
            if terminate and not self._is_over:
                self._insist()
                self._is_over = True

        return maybe_finalize_async_save

    def _settle(self) -> None:
        """Agree about every checkpoint that is no longer being written."""
        writing = _number_in_background()
        while len(self._unfinished) > writing:
            step = self._unfinished.pop(0)
            reason = self._agree(step)
            if reason:
                self._discard(step)
                self._fail(step, reason)
                continue
            self._failed = None
            self._unwritten.announce(step)
            for callback in self._callbacks:
                callback.on_checkpoint_complete(step)

    def _agree(self, step: int) -> str:
        """Why a checkpoint is not complete; "" if it is, and is the newest from now on."""
        if self._folder is None:
            return ""
        found = world.gather_texts(self._unwritten.take(step))
        if reason := next(filter(None, found), ""):
            return reason
        if world.rank() == 0:
            if reason := self._unwritten.commit(step):
                self._unwritten.add(step, reason)
            else:
                self._needed = size_of_folder(iteration_dir(self._folder, step))
        return world.agree_on_text(self._unwritten.take(step))

    def _discard(self, step: int) -> None:
        self._unwritten.forget(step)
        if world.rank() == 0 and self._folder is not None:
            shutil.rmtree(iteration_dir(self._folder, step), ignore_errors=True)

    def _fail(self, step: int, reason: str) -> None:
        if world.rank() == 0 and (self._failed is None or self._failed[0] != step):
            logger.error("checkpoint of step %d not written to %s: %s", step, self._folder, reason)
        self._failed = (step, reason, get_args().consumed_train_samples)
        for callback in self._callbacks:
            callback.on_checkpoint_failed(step, reason)

    def _insist(self) -> None:
        """Try the last save again until it succeeds, if no step has been made since it failed.

        Raises:
            NoRoomError: It did not, for too long.
        """
        deadline, first = time.monotonic() + self._patience, True
        with self._clock.measure("checkpoint"):
            while self._failed and self._failed[2] == get_args().consumed_train_samples:
                step, reason, _ = self._failed
                if first and world.rank() == 0:
                    logger.error("the run waits %g s for room to save its end", self._patience)
                first = False
                if world.agree_on_text("" if time.monotonic() < deadline else "no longer"):
                    raise self._given_up(step, reason)
                time.sleep(min(_PAUSE_SECONDS, self._patience / 4))
                self._again()
                loop.maybe_finalize_async_save(blocking=True)

    def _given_up(self, step: int, reason: str) -> NoRoomError:
        assert self._folder is not None
        newest = tracked_step(self._folder)
        rest = "there is no other one" if newest is None else f"the newest is that of step {newest}"
        error = NoRoomError(
            f"the last checkpoint, of step {step}, could not be written to {self._folder} within "
            f"{self._patience:g} s: {reason}; {rest}. Free space, then resume; a larger "
            "checkpoint.patience_seconds waits longer."
        )
        if newest is not None:
            error.exit_code = AGAIN
        return error


def _number_in_background() -> int:
    """Number of saves that were handed over and are not complete; the same on all ranks."""
    queue = async_utils._async_calls_queue
    return 0 if queue is None else int(queue.get_num_unfinalized_calls())
