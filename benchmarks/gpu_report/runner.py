"""Runs stages one after another, each within its own limit and all within one budget.

A stage has a session of its own and a mark in its environment. When it ends, by itself or not, all
processes that carry the mark are killed: ranks of torchrun have sessions of their own and would
keep the device's memory from the next stage. It does not know what stages measure.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from benchmarks.gpu_report.results import Case
from benchmarks.gpu_report.stages import FOLDER, PYTHON, ROOT, Profile, Stage
from moe_megatron.platform.marked_processes import kill_marked

OK, FAILED, TIMED_OUT, STOPPED, NOT_RUN = "ok", "failed", "timed out", "stopped", "not run"

_MARK = "GPU_REPORT_STAGE"
_LEAST_SECONDS = 5.0
"""With less time left, no stage is started."""
_POLL_SECONDS = 0.05
_TAIL_BYTES = 8192


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a stage went."""

    stage: Stage
    status: str
    seconds: float = 0.0
    message: str = ""
    """Why it is not ok, in one line."""
    log: str | None = None
    """File name of its output, in the report's folder; None where it did not run."""
    cases: tuple[Case, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where stages work."""

    logs: Path
    """Folder of the report, which gets their output."""
    scratch: Path
    """Where each gets a folder of its own."""


@contextlib.contextmanager
def stop_requests() -> Iterator[Event]:
    """Set by Ctrl-C or SIGTERM, which inside do nothing else."""
    event = Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, lambda *_: event.set()) for number in signals}
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def run_stages(
    profile: Profile,
    place: Place,
    *,
    budget: float,
    lacks: Callable[[Stage], str | None],
    stop: Event,
) -> Iterator[Outcome]:
    """Run the stages of a profile in their order.

    Args:
        profile: What to run.
        place: Where to.
        budget: Seconds from now on, for all of them.
        lacks: Why a stage cannot run on this machine; None where it can.
        stop: Ends the stage that runs, and runs no more of them.

    Yields:
        What came of each stage, as soon as it is known.
    """
    end = time.monotonic() + budget
    for stage in profile.stages:
        left = end - time.monotonic()
        if stop.is_set():
            yield Outcome(stage=stage, status=NOT_RUN, message="stopped before it")
        elif lack := lacks(stage):
            yield Outcome(stage=stage, status=NOT_RUN, message=lack)
        elif left < _LEAST_SECONDS:
            yield Outcome(stage=stage, status=NOT_RUN, message="no time left")
        else:
            yield _run(stage, place, profile.environment, min(stage.limit, left), stop)


def _run(
    stage: Stage, place: Place, environment: Mapping[str, str], limit: float, stop: Event
) -> Outcome:
    name = "-".join(re.findall(r"\w+", stage.name))
    folder, log = place.scratch / name, place.logs / f"{name}.txt"
    folder.mkdir(parents=True)
    started, mark = time.monotonic(), uuid.uuid4().hex
    process = _start(stage, folder, log, {**environment, _MARK: mark})
    while process.poll() is None and not stop.is_set() and time.monotonic() < started + limit:
        stop.wait(_POLL_SECONDS)
    code = process.poll()
    _kill(process, mark)
    cases = _read(stage, folder)
    status, message = _judge(code, stop.is_set(), limit, cases, log)
    return Outcome(
        stage=stage,
        status=status,
        seconds=time.monotonic() - started,
        message=message,
        log=log.name,
        cases=cases,
    )


def _start(
    stage: Stage, folder: Path, log: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    words = {PYTHON: sys.executable, FOLDER: str(folder)}
    with log.open("wb") as output:
        return subprocess.Popen(
            [_filled(word, words) for word in stage.command],
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _read(stage: Stage, folder: Path) -> tuple[Case, ...]:
    """What the stage has left; what a killed one wrote may be damaged in any way."""
    try:
        return tuple(stage.read(folder))
    except Exception as problem:
        return (Case(name="results", error=f"{type(problem).__name__}: {problem}"),)


def _filled(word: str, words: Mapping[str, str]) -> str:
    for name, value in words.items():
        word = word.replace(name, value)
    return word


def _judge(
    code: int | None, stopped: bool, limit: float, cases: tuple[Case, ...], log: Path
) -> tuple[str, str]:
    """Status and message of a stage; the code is None where it did not end by itself."""
    if code is None:
        return (STOPPED, "by a signal") if stopped else (TIMED_OUT, f"after {limit:.0f} s")
    failed = sum(case.error is not None for case in cases)
    if failed:
        return FAILED, f"{failed} of {len(cases)} cases"
    if code:
        return FAILED, _last_line(log) or f"exit code {code}"
    return (OK, "") if cases else (FAILED, "it left no result")


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _kill(process: subprocess.Popen[bytes], mark: str) -> None:
    """Kill the stage's process group, and whoever else carries its mark."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kill_marked(_MARK, mark)
