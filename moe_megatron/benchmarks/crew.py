"""Works through the runs of a bench, in this process or in some that train run after run.

What is done already is skipped, so the same call goes on where it was stopped. A run that fails is
told and left out; the others are made. The order goes through all cases before the next seed, so
that a bench which is stopped has something of everything.
"""

import logging
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch

from moe_megatron.benchmarks.case import Case
from moe_megatron.benchmarks.corpus import read_corpus
from moe_megatron.benchmarks.one_run import measure_step_time, train_and_measure
from moe_megatron.benchmarks.record import BenchFolder
from moe_megatron.benchmarks.setup import Setup
from moe_megatron.errors import MoEError, RecoveryError
from moe_megatron.platform.parent import end_with_parent

_POLL_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A run to make."""

    folder: BenchFolder
    setup: Setup
    case: Case
    number: int
    """The seed, or the turn of a step time."""
    times: bool = False
    """Whether its step time is what is wanted."""

    @property
    def name(self) -> str:
        """What it is, for a line of progress."""
        what = "turn" if self.times else "seed"
        return f"{self.case.name}, {self.case.num_experts} experts, {what} {self.number}"

    @property
    def is_done(self) -> bool:
        """Whether its result is there."""
        if self.times:
            return self.folder.step_time(self.case, self.number) is not None
        return self.folder.record_of(self.case, self.number) is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """How a run went."""

    task: Task
    failure: str = ""
    """Why it has no result; "" if it has one."""


def run_tasks(folder: BenchFolder, setup: Setup, cases: Sequence[Case], seeds: int) -> list[Task]:
    """The runs that are missing for every case and the seeds 1, 2, ..."""
    tasks = [
        Task(folder=folder, setup=setup, case=case, number=seed)
        for seed in range(1, seeds + 1)
        for case in cases
    ]
    return [task for task in tasks if not task.is_done]


def time_tasks(folder: BenchFolder, setup: Setup, cases: Sequence[Case], turns: int) -> list[Task]:
    """The step times that are missing; every second turn goes backwards through the cases.

    So a machine that gets slower meanwhile does so for all alike.
    """
    tasks = [
        Task(folder=folder, setup=setup, case=case, number=turn, times=True)
        for turn in range(1, turns + 1)
        for case in (cases if turn % 2 else reversed(cases))
    ]
    return [task for task in tasks if not task.is_done]


def work(tasks: Sequence[Task], jobs: int) -> Iterator[Ended]:
    """Do all tasks; yields each as it ends.

    Args:
        tasks: What to do.
        jobs: Processes that work at once, a thread each; 1 works in this one.

    Raises:
        KeyboardInterrupt: Ctrl-C; what is not finished leaves nothing.
        RecoveryError: A process was killed.
    """
    if jobs == 1:
        with _one_thread():
            for task in tasks:
                yield _do(task)
        return
    yield from _in_processes(tasks, jobs)


def _in_processes(tasks: Sequence[Task], jobs: int) -> Iterator[Ended]:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        min(jobs, len(tasks)) or 1, context, initializer=_begin, initargs=(os.getpid(),)
    )
    try:
        waiting: set[Future[Ended]] = {pool.submit(_do, task) for task in tasks}
        while waiting:
            done, waiting = wait(waiting, _POLL_SECONDS, FIRST_COMPLETED)
            yield from (it.result() for it in done)
    except BrokenProcessPool:
        raise RecoveryError(
            "a process of the bench was killed, perhaps for lack of memory; give --jobs 1 and the "
            "same command again, which goes on where it was."
        ) from None
    finally:
        for process in multiprocessing.active_children():
            if waiting:
                process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(parent: int) -> None:
    """Begins a process: Ctrl-C is its parent's to answer, and it ends with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(parent)
    torch.set_num_threads(1)
    logging.getLogger("moe_megatron").setLevel(logging.ERROR)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _do(task: Task) -> Ended:
    try:
        _time(task) if task.times else _train(task)
    except MoEError as error:
        return Ended(task=task, failure=str(error))
    return Ended(task=task)


def _train(task: Task) -> None:
    record = train_and_measure(task.setup, task.case, task.number, _corpus(task.setup))
    task.folder.save(record, task.case)


def _time(task: Task) -> None:
    short = task.setup.shortened()
    milliseconds = measure_step_time(short, task.case, _corpus(short))
    task.folder.save_step_time(task.case, task.number, milliseconds)


_corpus = cache(read_corpus)
