"""Saves checkpoints in a forked process, which ends with its rank and needs no others.

The fork has the tensors as they are at that moment, without a copy: the kernel copies what training
changes while it writes. Megatron's own results queue is a server in a third process, which outlives
a killed rank; here results come through a pipe. It does not know when checkpoints are saved.
"""

import multiprocessing
import os
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.training import async_utils, checkpointing

from moe_megatron.platform.parent import end_with_parent

_PATIENCE_SECONDS = 60.0


class _Results:
    """The queue of a writer: the fork puts what it wrote, and the rank gets it."""

    def __init__(self) -> None:
        self._receiver, self._sender = multiprocessing.Pipe(duplex=False)
        self._received: queue.Queue[Any] = queue.Queue()
        # Read at once: a pipe is smaller than the results of a large model.
        threading.Thread(target=self._receive, name="checkpoint-results", daemon=True).start()

    def put(self, results: Any) -> None:
        """Called in the fork."""
        self._sender.send(results)

    def get_nowait(self) -> Any:
        """Called in the rank when the fork has ended: what it put is on its way."""
        return self._received.get(timeout=_PATIENCE_SECONDS)

    def close(self) -> None:
        """End the thread."""
        self._sender.send(None)

    def _receive(self) -> None:
        while (results := self._receiver.recv()) is not None:
            self._received.put(results)


@contextmanager
def saving_in_a_fork(args: Any) -> Iterator[None]:
    """Let Megatron's asynchronous writer use a fork that ends with this process, meanwhile.

    Args:
        args: Megatron's arguments.
    """
    args.use_persistent_ckpt_worker = False
    original = checkpointing.schedule_async_save
    results = _Results()

    def schedule_async_save(request: Any) -> None:
        if request.async_fn is not None:
            request = request._replace(async_fn=partial(_tied, os.getpid(), request.async_fn))
        original(request)

    filesystem_async._results_queue = results
    checkpointing.schedule_async_save = schedule_async_save
    try:
        yield
    finally:
        _abandon()
        checkpointing.schedule_async_save = original
        filesystem_async._results_queue = None
        results.close()


def _abandon() -> None:
    """End what a run that failed is still writing; the next one begins without it."""
    saves = async_utils._async_calls_queue
    for save in () if saves is None else saves.async_calls:
        if (fork := save.async_caller.process) is not None:
            fork.kill()
            fork.join()
    async_utils._async_calls_queue = None


def _tied(rank: int, write: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Write in the fork, unless the rank has ended: another job may own the folder by then."""
    end_with_parent(rank)
    write(*args, **kwargs)
