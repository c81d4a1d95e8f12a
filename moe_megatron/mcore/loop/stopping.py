"""Ends a run that is asked to stop, by Ctrl-C, by SIGTERM or by SIGUSR1.

The last is how batch systems announce that time is nearly up. The step under way is finished and
saved, as with Megatron's `--exit-signal`. A process alone leaves a step or an evaluation that goes
on for more than a few seconds: the run ends as it was before it. Of several processes none can
leave, because the others would wait for it. How a step is undone is the guard's to know.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Any

from megatron.core.rerun_state_machine import get_rerun_state_machine
from megatron.training import get_timers
from megatron.training import training as loop

from moe_megatron.mcore import world
from moe_megatron.platform.parent import LAUNCHER_VARIABLE

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 5.0
"""How long a process alone goes on with what it is doing."""
_NUDGE = signal.SIGURG
"""Wakes the main thread, even from a sleep; nobody uses it, and unhandled it does nothing."""
_NUDGE_SECONDS = 0.2


class Left(BaseException):
    """Leaves a step or an evaluation; no error, so that nobody takes it for one."""


class Stopping:
    """What signals do to one run.

    Args:
        exit_signal: The signal that Megatron's loop looks for after each step.
    """

    def __init__(self, exit_signal: int) -> None:
        self._exit_signal = exit_signal
        self._process = os.getpid()
        self._stops_noted: Any = None
        self._thread: threading.Thread | None = None
        self._is_over = threading.Event()
        self._can_leave = self._is_impatient = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle signals, and stand around evaluations, for as long as the context is open."""
        with ExitStack() as stack:
            # Signals belong to the main thread; a notebook may train in another.
            with suppress(ValueError):
                self._stops_noted = signal.getsignal(self._exit_signal)  # Megatron's
                stops = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, self._exit_signal}
                for signum, handler in [*((it, self._stop) for it in stops), (_NUDGE, self._leave)]:
                    stack.callback(signal.signal, signum, signal.signal(signum, handler))
            stack.callback(setattr, loop, "evaluate", loop.evaluate)
            loop.evaluate = self._evaluate(loop.evaluate)
            stack.callback(self._end)
            yield

    @contextmanager
    def may_be_left(self) -> Iterator[None]:
        """The block may end with `Left`, if this process is alone and was asked to stop."""
        self._can_leave = world.size() == 1
        try:
            yield
        finally:
            self._can_leave = False

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker that loads data, or writes a checkpoint
            return
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._stops_noted(self._exit_signal, frame)
        if self._thread is None:
            self._thread = threading.Thread(target=self._insist, name="stopping", daemon=True)
            self._thread.start()

    def _insist(self) -> None:
        """Say what happens, and see to it; on a thread of its own, which may print at any time."""
        if world.rank() == 0 and LAUNCHER_VARIABLE not in os.environ:  # our launcher has said it
            leaves = f", left if it takes {PATIENCE_SECONDS:g} s" if world.size() == 1 else ""
            logger.warning(
                "stopping after this step%s (a second Ctrl-C stops now, without saving)", leaves
            )
        self._is_impatient = self._is_over.wait(PATIENCE_SECONDS) is False
        main = threading.main_thread().ident
        assert main is not None
        while not self._is_over.wait(_NUDGE_SECONDS):
            if self._can_leave:
                signal.pthread_kill(main, _NUDGE)

    def _leave(self, signum: int, frame: FrameType | None) -> None:
        if self._can_leave and self._is_impatient and os.getpid() == self._process:
            self._can_leave = False
            raise Left

    def _end(self) -> None:
        self._is_over.set()
        if self._thread is not None:
            self._thread.join()

    def _evaluate(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def evaluate(forward: Any, data: Any, model: list[Any], *args: Any, **kwargs: Any) -> Any:
            machine, timer = get_rerun_state_machine(), get_timers()("evaluate", log_level=0)
            mode = machine.get_mode()
            try:
                with self.may_be_left():
                    return original(forward, data, model, *args, **kwargs)
            except Left:
                machine.set_mode(mode)
                if timer._started:
                    timer.stop()
                for chunk in model:
                    chunk.train()
                logger.warning("the evaluation takes long and is left out: the run was stopped")
                return None, None, True  # as Megatron does when a limit of time is reached

        return evaluate
