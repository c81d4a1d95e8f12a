"""Notices that a run hangs, keeps the stacks of its ranks, names the one that hangs, and ends it.

    limit    recovery.hang_seconds, or 60 s + 10 * the median of the last steps;
             ten times that in checkpoints and evaluations; none before the first step has ended

A thread on each rank writes heartbeats, and counts the time without progress in its own turns, so
that the time for which a whole job is suspended does not count. What is done after that (starting
again) is the launcher's.
"""

import faulthandler
import logging
import os
import signal
import socket
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from moe_megatron.errors import FAULT
from moe_megatron.mcore import world
from moe_megatron.mcore.loop.callbacks import Callback, EvaluationEnd, StepEnd
from moe_megatron.mcore.recovery.heartbeats import (
    Beat,
    claim,
    find_culprit,
    read_beats,
    write_beat,
)
from moe_megatron.telemetry.journal import note

logger = logging.getLogger(__name__)

_MARGIN, _MEDIANS, _PATIENT = 60.0, 10.0, 10.0
_PATIENT_PHASES = frozenset({"checkpoint", "evaluation"})
_TURNS = 20
"""Turns of the thread within the limit; in the second half of them it listens to the others."""
_SILENT_TURNS = 5
"""Turns without a beat after which a rank counts as stopped."""
_WAITING_FILES = ("torch/distributed/", "mcore/cpu/fast/shared_memory.py", "emulation/gloo.py")
_INNERMOST = 3


class Watchdog(Callback):
    """Watches one rank.

    Args:
        run_dir: Folder of the run.
        seconds: Longest time without progress; None derives it from the steps.
        ends: Whether to end the process when the run hangs.
        phase: Gives the phase in which the loop is.
    """

    def __init__(
        self, run_dir: Path, *, seconds: float | None, ends: bool, phase: Callable[[], str]
    ) -> None:
        self._run_dir = run_dir
        self._folder = run_dir / "heartbeats"
        self._seconds, self._ends, self._phase = seconds, ends, phase
        self._steps: deque[float] = deque(maxlen=50)
        self._progress = self._step = self._count = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._watched = 0
        self._seen: dict[int, tuple[int, int]] = {}
        """The newest count of each rank, and the turns for which it has not grown."""

    def on_train_start(self, model: list[Any], start_step: int) -> None:
        """Start watching this thread."""
        self._step, self._watched = start_step, threading.get_ident()
        with suppress(OSError):  # a full disk, perhaps: the beats come when there is room
            self._folder.mkdir(exist_ok=True)
            for old in (f"rank{world.rank()}.json", "hang"):
                (self._folder / old).unlink(missing_ok=True)
            self._tell_others()  # a rank that is stopped before its first turn is known, too
        self._stop.clear()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def on_train_end(self, model: list[Any]) -> None:
        """Stop watching."""
        self.close()

    def close(self) -> None:
        """Stop watching, however training ended."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def on_step_start(self, step: int) -> None:
        """Progress."""
        self._step = step
        self._progress += 1

    def on_step_end(self, event: StepEnd) -> None:
        """Progress; the duration of steps decides how long one may take."""
        self._steps.append(event.seconds)
        self._progress += 1

    def on_step_discarded(self, step: int) -> None:
        """Progress, of a kind."""
        self._progress += 1

    def on_evaluation_end(self, event: EvaluationEnd) -> None:
        """Progress."""
        self._progress += 1

    def on_checkpoint_start(self, step: int) -> None:
        """Progress."""
        self._progress += 1

    def on_checkpoint_end(self, step: int) -> None:
        """Progress."""
        self._progress += 1

    def on_checkpoint_failed(self, step: int, reason: str) -> None:
        """Progress: the run waits for room, and not for a rank."""
        self._progress += 1

    def _limit(self) -> float | None:
        """Seconds that may pass without progress; None before the first step has ended."""
        if not self._steps:
            return None
        limit = self._seconds
        if limit is None:
            limit = _MARGIN + _MEDIANS * statistics.median(tuple(self._steps))
        return limit * (_PATIENT if self._phase() in _PATIENT_PHASES else 1.0)

    def _watch(self) -> None:
        stalled, progress, before = 0.0, -1, time.monotonic()
        while True:
            limit = self._limit()
            interval = min(5.0, (self._seconds or _MARGIN) / _TURNS)
            if self._stop.wait(interval):
                return
            now = time.monotonic()
            # A turn that took much longer was no turn: this process itself was suspended.
            stalled += min(now - before, 2 * interval)
            before = now
            if self._progress != progress:
                stalled, progress = 0.0, self._progress
            try:
                self._tell_others()
                # Nobody needs to hear of the others, who may be thousands, while steps end.
                if limit is None or stalled < limit / 2:
                    continue
                beats = self._hear_others()
            except OSError as error:
                logger.debug("no heartbeat: %s", error)
                continue
            if stalled > limit:
                self._hangs(beats, stalled, interval)
                return

    def _tell_others(self) -> None:
        """Write the state of this rank."""
        self._count += 1
        process = psutil.Process()
        beat = Beat(
            rank=world.rank(),
            host=socket.gethostname(),
            pid=process.pid,
            started=process.create_time(),
            count=self._count,
            progress=self._progress,
            step=self._step,
            phase=self._phase(),
            waits=self._waits(),
        )
        write_beat(self._folder, beat)

    def _hear_others(self) -> dict[int, Beat]:
        """Read the states of all ranks, and count for how long each has been the same."""
        beats = read_beats(self._folder, world.size())
        for rank, other in beats.items():
            count, turns = self._seen.get(rank, (-1, 0))
            self._seen[rank] = (other.count, turns + 1 if other.count == count else 0)
        return beats

    def _waits(self) -> bool:
        """Whether the innermost frames of the watched thread wait for other ranks."""
        frame = sys._current_frames().get(self._watched)
        for _ in range(_INNERMOST):
            if frame is None:
                break
            if any(part in frame.f_code.co_filename for part in _WAITING_FILES):
                return True
            frame = frame.f_back
        return False

    def _hangs(self, beats: dict[int, Beat], seconds: float, interval: float) -> None:
        stacks = self._run_dir / "logs" / f"stacks-rank{world.rank()}.txt"
        with suppress(OSError):  # a hang on a full disk is still one
            stacks.parent.mkdir(exist_ok=True)
            with stacks.open("w", encoding="utf-8") as file:
                faulthandler.dump_traceback(file, all_threads=True)
        silent = [rank for rank, (_, turns) in self._seen.items() if turns >= _SILENT_TURNS]
        culprit = find_culprit(beats.values(), silent)
        first = claim(self._folder)
        if first:
            self._tell(culprit, seconds, is_silent=culprit is not None and culprit.rank in silent)
        if not self._ends:
            return
        if first and culprit is not None and culprit.rank in silent:
            _kill(culprit)
        # The first gives the others the time to keep their stacks: its end is the end of all.
        time.sleep(interval * (2 if first else 8))
        os._exit(FAULT)

    def _tell(self, culprit: Beat | None, seconds: float, *, is_silent: bool) -> None:
        known = {"seconds": round(seconds, 1), "stacks": "logs/stacks-rankN.txt"}
        if culprit is None:
            logger.error(
                "the run hangs: no progress for %.0f s, and every rank waits for others; see %s",
                seconds,
                self._run_dir / "logs" / "stacks-rank*.txt",
            )
            note(self._run_dir, "hang", rank=None, **known)
            return
        logger.error(
            "the run hangs: no progress for %.0f s. Rank %d on %s %s step %d (%s); see %s",
            seconds,
            culprit.rank,
            culprit.host,
            "is stopped or gone, last seen in" if is_silent else "does not wait for others, in",
            culprit.step,
            culprit.phase,
            self._run_dir / "logs" / "stacks-rank*.txt",
        )
        where = {"host": culprit.host, "step": culprit.step, "phase": culprit.phase}
        note(self._run_dir, "hang", rank=culprit.rank, **known, **where)


def _kill(beat: Beat) -> None:
    """Kill a process that is stopped, if it is on this machine and still the same one."""
    if beat.host != socket.gethostname():
        return
    try:
        process = psutil.Process(beat.pid)
        if process.create_time() == beat.started:
            process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return
