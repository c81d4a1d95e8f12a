"""Runs the contenders of a benchmark in fresh processes and reads what they measured.

Every rank is a new interpreter, bound to its own cores and limited to as many threads, so that all
contenders get the same machine. Rank 0 prints one line of JSON behind `MARK`. It does not know what
the ranks do; that is in megatron_rank.py and hf_rank.py.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.turns import Seat

ROOT = Path(__file__).resolve().parents[1]
MARK = "BENCHMARK RESULT "
TASK = "BENCHMARK_TASK"
"""Environment variable that holds a rank's task as JSON."""


class Contender:
    """The ranks of one contender, while they run."""

    def __init__(
        self,
        module: str,
        task: Mapping[str, Any],
        *,
        processes: int = 2,
        threads: int = 1,
        seat: Seat | None = None,
    ) -> None:
        """Start `python -m module` once a rank.

        Args:
            module: "benchmarks.megatron_rank" or its like.
            task: What the ranks shall do, as JSON can say it.
            processes: Number of ranks.
            threads: Threads, and cores, of each.
            seat: The contender's place among others that run at the same time.
        """
        cores = sorted(os.sched_getaffinity(0))
        if processes * threads > len(cores):
            few = f"{processes} x {threads} threads on {len(cores)} cores"
            print(f"warning: {few}", file=sys.stderr)
        self._module = module
        port = _free_port()
        self._ranks = []
        for rank in range(processes):
            own = {cores[i % len(cores)] for i in range(rank * threads, (rank + 1) * threads)}
            environment = {
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": str(threads),
                "CUDA_VISIBLE_DEVICES": "",
                TASK: json.dumps(dict(task)),
                **(seat.environment() if seat else {}),
            }
            bound = ["taskset", "-c", ",".join(map(str, sorted(own)))]
            self._ranks.append(
                subprocess.Popen(
                    [*bound, sys.executable, "-m", module],
                    cwd=ROOT,
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    pass_fds=seat.descriptors if seat else (),
                )
            )

    @property
    def processes(self) -> list[int]:
        """Ids of the ranks' processes, by rank."""
        return [rank.pid for rank in self._ranks]

    def result(self, timeout: float = 7200.0) -> dict[str, Any]:
        """Wait for all ranks; returns what rank 0 reported.

        Args:
            timeout: Seconds until all must have ended.

        Raises:
            RuntimeError: A rank failed; holds the end of its output.
        """
        try:
            outputs = [rank.communicate(timeout=timeout)[0] for rank in self._ranks]
        finally:
            self.kill()
        for rank, output in zip(self._ranks, outputs, strict=True):
            if rank.returncode:
                ended = f"{self._module} ended with code {rank.returncode}"
                raise RuntimeError(f"{ended}:\n{output[-5000:]}")
        line = next(line for line in outputs[0].splitlines() if line.startswith(MARK))
        return dict(json.loads(line.removeprefix(MARK)))

    def kill(self) -> None:
        """End all ranks."""
        for rank in self._ranks:
            rank.kill()


def run_ranks(
    module: str,
    task: Mapping[str, Any],
    *,
    processes: int = 2,
    threads: int = 1,
    timeout: float = 7200.0,
) -> dict[str, Any]:
    """Run one contender alone; arguments, result and errors are those of `Contender`."""
    return Contender(module, task, processes=processes, threads=threads).result(timeout)


def task() -> dict[str, Any]:
    """The task of this rank."""
    return dict(json.loads(os.environ[TASK]))


def report(result: Mapping[str, Any]) -> None:
    """Hand the result to the process that started the ranks; on rank 0."""
    print(MARK + json.dumps(dict(result)), flush=True)


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
