"""TensorBoard and W&B as Megatron opens them, except that they never raise.

Megatron calls its writers in the middle of a step, so that a full disk under TensorBoard would end
the run; and TensorBoard's writer, once it has failed, refuses everything. Here a writer that fails
is left out for a while, then opened again and goes on in another file. Steps that are made again
replace the earlier ones in TensorBoard; W&B keeps both. It does not know what is written.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from typing import Any

from megatron.training import global_vars, wandb_utils

from moe_megatron.telemetry.sinks.backoff import Backoff
from moe_megatron.telemetry.sinks.health import SinkHealth

logger = logging.getLogger(__name__)

_TENSORBOARD = "_GLOBAL_TENSORBOARD_WRITER"
_WRITES = frozenset({"log", "save", "finish", "alert", "flush", "close"})


class LastingWriter:
    """Stands for a `SummaryWriter`, or for the `wandb` module with a run open.

    Args:
        writer: What Megatron has opened.
        name: Of the sink, for `health`.
        health: Is told of outages.
    """

    def __init__(self, writer: Any, name: str, health: SinkHealth) -> None:
        self._writer = writer
        self._name = name
        self._health = health
        self._backoff = Backoff()

    def __getattr__(self, attribute: str) -> Any:
        found = getattr(self._writer, attribute)
        if attribute in _WRITES or attribute.startswith("add_"):
            return partial(self._write, found)
        return found

    def _write(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._backoff.waiting:
            self._health.dropped(self._name)
            return None
        try:
            answer = method(*args, **kwargs)
        except Exception as error:  # whatever a client of a server raises
            self._backoff.failed()
            self._health.dropped(self._name)
            self._health.failed(self._name, f"{type(error).__name__}: {error}")
            self._reopen()
            return None
        self._backoff.worked()
        self._health.restored(self._name)
        return answer

    def rewind(self, last_step: int) -> None:
        """Make a `SummaryWriter` forget what came after a step."""
        self._reopen()
        self._write(self._begin_after, last_step)

    def _begin_after(self, last_step: int) -> None:
        """Begin a file that tells readers from which step on earlier ones do not count."""
        self._writer.purge_step = last_step + 1
        try:
            self._writer._get_file_writer()
        finally:
            self._writer.purge_step = None

    def _reopen(self) -> None:
        """Make a `SummaryWriter` begin another file with its next value."""
        if hasattr(self._writer, "file_writer"):
            with suppress(Exception):
                self._writer.close()
            self._writer.file_writer = self._writer.all_writers = None


def rewind_tensorboard(last_step: int) -> None:
    """Have TensorBoard forget the steps after `last_step`, which are made again."""
    writer = getattr(global_vars, _TENSORBOARD)
    if isinstance(writer, LastingWriter):
        writer.rewind(last_step)


def _errors_of(name: str) -> tuple[type[Exception], ...]:
    """What a writer raises that cannot write; the W&B client has an error of its own."""
    if name != "wandb" or find_spec("wandb") is None:
        return (OSError,)
    import wandb

    return (OSError, wandb.Error)


@contextmanager
def lasting_writers(health: SinkHealth) -> Iterator[None]:
    """Have Megatron open writers that last, for as long as the context is open."""
    openers = {
        "tensorboard": ("_set_tensorboard_writer", _TENSORBOARD),
        "wandb": ("_set_wandb_writer", "_GLOBAL_WANDB_WRITER"),
    }
    originals = {opener: getattr(global_vars, opener) for opener, _ in openers.values()}
    tell_saved = wandb_utils.on_save_checkpoint_success

    def telling(*args: Any, **kwargs: Any) -> None:
        try:
            tell_saved(*args, **kwargs)
        except Exception as error:  # the checkpoint is written, whatever W&B makes of it
            health.dropped("wandb")
            logger.warning("W&B was not told of a checkpoint: %s", error)

    def opening(original: Callable[[Any], None], name: str, variable: str, args: Any) -> None:
        try:
            original(args)
        except _errors_of(name) as error:  # a full disk, or one that cannot be written
            health.failed(name, f"it cannot be opened: {type(error).__name__}: {error}")
            return
        writer = getattr(global_vars, variable)
        if writer is not None:
            setattr(global_vars, variable, LastingWriter(writer, name, health))

    try:
        for name, (opener, variable) in openers.items():
            setattr(global_vars, opener, partial(opening, originals[opener], name, variable))
        wandb_utils.on_save_checkpoint_success = telling
        yield
    finally:
        wandb_utils.on_save_checkpoint_success = tell_saved
        for opener, original in originals.items():
            setattr(global_vars, opener, original)
