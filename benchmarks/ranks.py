"""Runs one contender of a benchmark in fresh processes and reads what they measured.

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

ROOT = Path(__file__).resolve().parents[1]
MARK = "BENCHMARK RESULT "
TASK = "BENCHMARK_TASK"
"""Environment variable that holds a rank's task as JSON."""


def run_ranks(
    module: str,
    task: Mapping[str, Any],
    *,
    processes: int = 2,
    threads: int = 1,
    timeout: float = 7200.0,
) -> dict[str, Any]:
    """Run `python -m module` once a rank; returns what rank 0 reported.

    Args:
        module: "benchmarks.megatron_rank" or its like.
        task: What the ranks shall do, as JSON can say it.
        processes: Number of ranks.
        threads: Threads, and cores, of each.
        timeout: Seconds until all must have ended.

    Raises:
        RuntimeError: A rank failed; holds the end of its output.
    """
    cores = sorted(os.sched_getaffinity(0))
    if processes * threads > len(cores):
        print(f"warning: {processes} x {threads} threads on {len(cores)} cores", file=sys.stderr)
    port = _free_port()
    ranks = []
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
        }
        ranks.append(
            subprocess.Popen(
                ["taskset", "-c", ",".join(map(str, sorted(own))), sys.executable, "-m", module],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        outputs = [rank.communicate(timeout=timeout)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for rank, output in zip(ranks, outputs, strict=True):
        if rank.returncode:
            raise RuntimeError(f"{module} failed:\n{output[-5000:]}")
    line = next(line for line in outputs[0].splitlines() if line.startswith(MARK))
    return dict(json.loads(line.removeprefix(MARK)))


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
