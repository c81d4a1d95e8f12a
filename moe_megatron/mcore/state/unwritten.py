"""What this rank could not write of a checkpoint, kept until all ranks agree on what to do.

Megatron writes the tensors of each rank, gathers what went wrong, and raises on every rank. The
small files that follow are written by rank 0 alone: if one fails, it raises there, and the other
ranks wait for it for ever. Here such a failure is remembered instead. The tracker file, which makes
a checkpoint the newest one, is kept back until `commit`, and W&B hears of it after that. It does
not know when ranks agree.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from megatron.core.dist_checkpointing import serialization
from megatron.training import checkpointing, wandb_utils
from torch.distributed.checkpoint.filesystem import _FileSystemWriter

from moe_megatron.config.checkpoint_files import TRACKER, iteration_dir, step_of
from moe_megatron.files import replace_file


class Unwritten:
    """The failures of one rank, by the step of the checkpoint.

    Args:
        folder: Folder of the `iter_*` folders. What is written elsewhere is left alone.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._reasons: dict[int, str] = {}
        self._trackers: dict[int, str] = {}
        self._announcements: dict[int, Callable[[], None]] = {}

    def add(self, step: int, reason: str) -> None:
        """Remember why a checkpoint is not complete; of several reasons, the first."""
        self._reasons.setdefault(step, reason)

    @contextmanager
    def noted(self, step: int | None) -> Iterator[None]:
        """Remember an error of the operating system inside the context, instead of raising it."""
        try:
            yield
        except OSError as error:
            if step is None:
                raise
            self.add(step, error.strerror or str(error))

    def take(self, step: int) -> str:
        """Why the checkpoint is not complete on this rank, and forget it; "" if it is."""
        return self._reasons.pop(step, "")

    def commit(self, step: int) -> str:
        """Write the tracker file; returns why it cannot be written, or ""."""
        with self.noted(step):
            if (text := self._trackers.pop(step, None)) is not None:
                replace_file(self._folder / TRACKER, [text.encode()])
        return self.take(step)

    def announce(self, step: int) -> None:
        """Tell W&B of a checkpoint that all ranks have committed."""
        self._announcements.pop(step, lambda: None)()

    def forget(self, step: int) -> None:
        """Write no tracker file for this step, and do not announce it."""
        self._trackers.pop(step, None)
        self._announcements.pop(step, None)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Stand between Megatron and the files that rank 0 writes, meanwhile."""
        places = (
            (_FileSystemWriter, "finish", self._finish),
            (serialization, "save_config", self._save_config),
            (checkpointing, "maybe_msc", partial(_Files, self)),
            (wandb_utils, "on_save_checkpoint_success", self._told_later),
        )
        with ExitStack() as stack:
            for place, name, wrapped in places:
                original = getattr(place, name)
                stack.callback(setattr, place, name, original)
                setattr(place, name, wrapped(original))
            yield

    def step_in(self, folder: Any) -> int | None:
        """The step whose checkpoint is in this folder; None if it is none of ours."""
        path = Path(str(folder))
        step = step_of(path)
        return step if step is not None and path == iteration_dir(self._folder, step) else None

    def _finish(self, original: Any) -> Any:
        def finish(writer: Any, *args: Any, **kwargs: Any) -> None:
            with self.noted(self.step_in(writer.path)):
                original(writer, *args, **kwargs)

        return finish

    def _save_config(self, original: Any) -> Any:
        def save_config(config: Any, folder: Any) -> None:
            with self.noted(self.step_in(folder)):
                original(config, folder)

        return save_config

    def _told_later(self, original: Any) -> Any:
        def told_later(path: str, tracker: str, folder: str, step: int) -> None:
            tell = partial(original, path, tracker, folder, step)
            if self.is_our_tracker(tracker):
                self._announcements[step] = tell  # it reads the tracker file
            else:
                tell()

        return told_later

    @contextmanager
    def tracker(self) -> Iterator[io.StringIO]:
        """The file to which Megatron writes the newest step."""
        file = io.StringIO()
        yield file
        self._trackers[int(file.getvalue())] = file.getvalue()

    def is_our_tracker(self, path: Any) -> bool:
        """Whether a path is that of the tracker file of our folder."""
        return Path(str(path)) == self._folder / TRACKER

    @property
    def is_empty(self) -> bool:
        """Whether nothing has failed."""
        return not self._reasons


class _Files:
    """The files as Megatron's checkpoints see them."""

    def __init__(self, unwritten: Unwritten, original: Any) -> None:
        self._unwritten, self._original = unwritten, original

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    def open(self, path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        """Open a file, or keep back what is written to it."""
        if self._unwritten.is_our_tracker(path):
            if mode == "w":
                return self._unwritten.tracker()
            if not self._unwritten.is_empty:
                return io.StringIO("0")  # Megatron's retention would remove the last good one
        return self._original.open(path, mode, *args, **kwargs)
