"""Finds and kills the processes of a job by a mark in their environment.

Ranks and their helpers have sessions of their own, and an orphan has lost its parent, so neither a
process group nor a tree finds all of them; the environment is inherited by all.
"""

import contextlib
from collections.abc import Iterator, Mapping

import psutil

_ROUNDS = 20
"""Of killing: what survives them hangs in the kernel."""


def marked_processes(
    variable: str, value: str
) -> Iterator[tuple[psutil.Process, Mapping[str, str]]]:
    """Running processes whose environment has the variable with this value, and that environment.

    Zombies are left out: they run no more.
    """
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            alive = process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            continue
        if alive and environment.get(variable) == value:
            yield process, environment


def kill_marked(variable: str, value: str) -> None:
    """Kill all processes with the mark, also those that are started meanwhile."""
    for _ in range(_ROUNDS):
        family = [process for process, _ in marked_processes(variable, value)]
        if not family:
            return
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=0.5)
