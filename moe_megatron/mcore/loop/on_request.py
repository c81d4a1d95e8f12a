"""Does what somebody asks of a run while it trains: writes a checkpoint, or ends as by SIGTERM.

Rank 0 looks for requests. All ranks must save after the same step, so they learn of a request where
they tell each other of signals: Megatron gathers a number from each rank after every step, and a
request is a bit of it. That costs nothing. It does not know who asks.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from megatron.training import get_args, get_signal_handler
from megatron.training import training as loop
from megatron.training.dist_signal_handler import all_gather_item

from moe_megatron.mcore import world
from moe_megatron.platform.requests import Request, listening
from moe_megatron.telemetry.journal import note

logger = logging.getLogger(__name__)

_SIGNAL, _CHECKPOINT = 1, 2
"""Bits of the number that ranks exchange."""


class OnRequest:
    """The requests made of one run.

    Args:
        run_dir: Folder of the run; None: nobody can ask it.
    """

    def __init__(self, run_dir: Path | None) -> None:
        self._run_dir = run_dir
        self._wanted = threading.Event()
        self._is_due = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Listen, and stand around Megatron's decision to save, while the context is open."""
        # Without its handler of signals, as in a notebook's thread, there is no such exchange.
        if self._run_dir is None or not get_args().exit_signal_handler:
            yield
            return
        handler, original = get_signal_handler(), loop.checkpoint_and_decide_exit
        with ExitStack() as stack:
            stack.callback(setattr, loop, "checkpoint_and_decide_exit", original)
            loop.checkpoint_and_decide_exit = self._decide(original)
            stack.callback(delattr, handler, "signals_received")
            handler.signals_received = lambda: self._exchange(handler)
            if world.rank() == 0:
                stack.enter_context(listening(self._run_dir, self._told))
            yield

    def _told(self, what: Request) -> None:
        """Take a request up, on rank 0, on the thread that listens."""
        problem = {}
        if what == "stop":
            logger.warning("asked to stop: the run ends after this step")
            os.kill(os.getpid(), signal.SIGTERM)
        elif get_args().save:
            self._wanted.set()
        else:
            problem = {"reason": "the run writes no checkpoints"}
        note(self._run_dir, "asked", what=what, **problem)

    def _exchange(self, handler: Any) -> list[int]:
        """What `signals_received` gives: whether each rank was sent a signal."""
        mine = _SIGNAL if handler._signal_received else 0
        if self._wanted.is_set():
            self._wanted.clear()
            mine |= _CHECKPOINT
        found = all_gather_item(mine, dtype=torch.int32)
        self._is_due = any(it & _CHECKPOINT for it in found)
        return [it & _SIGNAL for it in found]

    def _decide(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def checkpoint_and_decide_exit(
            model: Any,
            optimizer: Any,
            scheduler: Any,
            step: int,
            operations: Any,
            context: Any,
            data: Any,
        ) -> bool:
            ends: bool = original(model, optimizer, scheduler, step, operations, context, data)
            args = get_args()
            interval = args.save_interval
            # A run that ends has saved, or does so in a moment.
            saves = ends or step >= args.train_iters or (interval and step % interval == 0)
            if self._is_due and not saves:
                loop.save_checkpoint_and_time(
                    step, model, optimizer, scheduler, operations, context, train_data_iterator=data
                )
            self._is_due = False
            return ends

        return checkpoint_and_decide_exit
