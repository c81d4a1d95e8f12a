"""Starts a run again in the processes that it has, when one of them fails.

The in-process restart of nvidia-resiliency-ext calls a function on every rank, and again on all of
them after one has raised: what was imported and compiled stays. Megatron's own integration wraps
its `pretrain` and hard-codes CUDA; here the whole attempt is wrapped, from the choice of the
checkpoint on, by the same package. What it cannot do, as when a process is gone, is left to the
launcher: the ranks then end. This module does not know what an attempt does.
"""

import os
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from moe_megatron.config import RecoveryConfig, RunConfig
from moe_megatron.errors import FaultError, MoEError
from moe_megatron.mcore import world
from moe_megatron.mcore.cpu.fast import shared_memory
from moe_megatron.mcore.loop.cleanup import forget_globals
from moe_megatron.platform.death import is_lost_peer, one_line
from moe_megatron.platform.parent import forks_outlive_us
from moe_megatron.platform.resiliency import messages_to, require_resiliency
from moe_megatron.run.folder import continued, last_saved_step
from moe_megatron.run.machine import choose_machine
from moe_megatron.run.start import patience
from moe_megatron.telemetry.journal import note

_HANG_SECONDS = 600.0
_MEETING_SECONDS = 300.0
_MISTAKE = "mistake"
_OURS, _THEIRS = 1, 2
"""Ports after the master's: for the process groups, and for the package itself."""


class Restarting[Result]:
    """One rank of a run that is started again within its processes.

    Args:
        config: The run.
        attempt: Makes one attempt on this rank, as a configuration says.
    """

    def __init__(self, config: RunConfig, attempt: Callable[[RunConfig], Result]) -> None:
        require_resiliency("recovery.restart: in_process")
        self._config = config
        self._attempt = attempt
        self._rank, self._size = world.rank(), world.size()
        self._store: Any = None
        self._error: Exception | None = None
        self._mistake: MoEError | None = None
        self._restarts = 0
        self._saved = last_saved_step(config)
        self._starting = ExitStack()

    def run(self) -> Result:
        """Attempt until one ends in order, or no further one is any use.

        Raises:
            Exception: Whatever the last attempt raised on this rank.
        """
        from nvidia_resiliency_ext.inprocess.exception import RestartAbort

        log = self._folder / "logs" / "in_process.log"
        try:
            with messages_to(log, f"rank {self._rank} "), self._starting:
                self._starting.enter_context(forks_outlive_us())
                call: Callable[[], Result] = self._wrapped()
                return call()
        except RestartAbort as given_up:
            if mistake := self._mistake or self._mistake_of_others():
                raise mistake from None
            raise (self._error or FaultError("another rank ended the run.")) from given_up

    def _wrapped(self) -> Any:
        from nvidia_resiliency_ext import inprocess

        def call(wrapper: inprocess.CallWrapper | None = None) -> Any:
            assert wrapper is not None
            self._starting.close()  # what is forked from now on ends with this process
            return self._try(wrapper.iteration)

        call.__annotations__["wrapper"] = inprocess.CallWrapper
        local_rank = os.environ.get("LOCAL_RANK")
        if not torch.cuda.is_available():
            os.environ.pop("LOCAL_RANK", None)  # it asks for checks of GPUs, which would fail
        try:
            wrapper = inprocess.Wrapper(**self._settings(inprocess))
        finally:
            if local_rank is not None:
                os.environ["LOCAL_RANK"] = local_rank
        return wrapper(call)

    def _settings(self, inprocess: Any) -> dict[str, Any]:
        soft, hard, barrier = limits(self._config.recovery)
        return {
            "store_kwargs": {"timeout": _seconds(_MEETING_SECONDS), "port": _port(_THEIRS)},
            "initialize": self._of_kind(inprocess.initialize.Initialize, self._begin),
            "abort": inprocess.Compose(
                inprocess.abort.AbortTransformerEngine(),
                self._of_kind(inprocess.abort.Abort, lambda state: shared_memory.hang_up()),
                inprocess.abort.AbortTorchDistributed(),
            ),
            # The request to start again may have come in the middle of cleaning up.
            "finalize": self._of_kind(inprocess.finalize.Finalize, lambda state: forget_globals()),
            "heartbeat_timeout": _seconds(60.0),
            "soft_timeout": _seconds(soft),
            "hard_timeout": _seconds(hard),
            "barrier_timeout": _seconds(barrier),
            "completion_timeout": _seconds(barrier),
        }

    @staticmethod
    def _of_kind(kind: Any, action: Callable[[Any], None]) -> Any:
        """An action as the package wants it: an object that passes on the state it is given."""

        def __call__(self: Any, state: Any) -> Any:  # noqa: N807
            action(state)
            return state

        return type(action.__name__, (kind,), {"__call__": __call__})()

    def _begin(self, state: Any) -> None:
        """Look whether another attempt is any use; every rank finds the same."""
        from nvidia_resiliency_ext.inprocess.exception import RestartAbort

        if state.world_size < self._size:
            raise RestartAbort("a rank is gone")
        if state.iteration == 0:
            return
        saved = last_saved_step(self._config)
        self._restarts = 0 if saved != self._saved else self._restarts
        self._saved = saved
        if self._restarts >= self._config.recovery.max_restarts:
            raise RestartAbort(f"{self._restarts} restarts without a new checkpoint")
        self._restarts += 1
        if self._rank == 0:
            reason = "" if self._error is None else one_line(self._error)
            note(self._folder, "restarting", attempt=self._restarts, reason=reason)

    def _try(self, iteration: int) -> Any:
        from nvidia_resiliency_ext.inprocess.exception import RestartAbort

        self._join(iteration)
        config = continued(self._config) if iteration else self._config
        try:
            return self._attempt(config)
        except FaultError as error:
            self._keep(error)
            raise
        except MoEError as error:  # a person must mend it
            self._mistake = error
            self._store.set(_MISTAKE, str(error))
            raise RestartAbort(str(error)) from error
        except Exception as error:
            self._keep(error)
            raise

    def _mistake_of_others(self) -> MoEError | None:
        """What another rank has found, which ended this one before it came as far."""
        try:
            found = self._store is not None and self._store.check([_MISTAKE])
            return MoEError(self._store.get(_MISTAKE).decode()) if found else None
        except RuntimeError:  # the rank that keeps the store is gone, and has said it
            return None

    def _join(self, iteration: int) -> None:
        """Meet the other ranks, under a name of this attempt."""
        if self._store is None:
            self._store = TCPStore(
                os.environ["MASTER_ADDR"],
                _port(_OURS),
                self._size,
                is_master=self._rank == 0,
                timeout=_seconds(_MEETING_SECONDS),
            )
        store = PrefixStore(f"attempt{iteration}", self._store)
        backend = choose_machine(self._config).settings.backend
        world.join(backend, patience(self._config), store)

    def _keep(self, error: Exception) -> None:
        traceback.clear_frames(error.__traceback__)  # they hold the model
        self._error = error
        if not is_lost_peer(error):
            reason = f"rank {self._rank} failed with {one_line(error)}"
            note(self._folder, "rank_died", rank=self._rank, reason=reason)

    @property
    def _folder(self) -> Path:
        return Path(self._config.run_dir)


def limits(recovery: RecoveryConfig) -> tuple[float, float, float]:
    """Seconds without progress after which a rank is interrupted, ended, and given up.

    Ten times as long as a step may take, for checkpoints and evaluations; the watchdog, which knows
    the phases, is faster.
    """
    soft = 10.0 * (_HANG_SECONDS if recovery.hang_seconds is None else recovery.hang_seconds)
    soft = max(soft, recovery.setup_seconds)
    return soft, 1.1 * soft, 1.2 * soft


def _port(place: int) -> int:
    return int(os.environ["MASTER_PORT"]) + place


def _seconds(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)
