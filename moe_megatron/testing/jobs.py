"""Runs training jobs in real processes over Gloo, for tests.

One group of processes runs a list of jobs one after another, so that importing torch and Megatron
is paid once. `run_jobs` is the test's side; `python -m moe_megatron.testing.jobs` is a rank's side.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe_megatron.config import apply_overrides, load_config, to_mapping
from moe_megatron.config.mapping import from_mapping
from moe_megatron.config.run import RunConfig

MOCK_VOCAB_SIZE = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One run: differences from a preset, and the folder it writes to."""

    run_dir: Path
    overrides: Mapping[str, Any] = field(default_factory=dict)
    preset: str = "test_tiny"

    @property
    def config(self) -> RunConfig:
        """The whole configuration."""
        return apply_overrides(load_config(self.preset), self.overrides)


def run_jobs(jobs: Sequence[Job], *, world_size: int, timeout: float = 300.0) -> None:
    """Run the jobs in order, each on all ranks, with Megatron's mock data.

    Args:
        jobs: What to run; they share the processes.
        world_size: Number of processes.
        timeout: Seconds until all of them must have ended.

    Raises:
        AssertionError: A rank failed; holds the end of its output.
    """
    described = [{"run_dir": str(j.run_dir), "config": to_mapping(j.config)} for j in jobs]
    port = _free_port()
    processes = []
    for rank in range(world_size):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            "JOBS": json.dumps(described),
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "moe_megatron.testing.jobs"],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for rank, (process, output) in enumerate(zip(processes, outputs, strict=True)):
        assert process.returncode == 0, f"rank {rank} failed:\n{output[-6000:]}"


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def _run_rank() -> None:
    """Run every job of the environment variable JOBS on this rank."""
    from moe_megatron.mcore import world
    from moe_megatron.mcore.loop import engine
    from moe_megatron.run.machine import choose_machine
    from moe_megatron.telemetry.sinks.jsonl import MetricsLog, RoutingLog
    from moe_megatron.telemetry.sinks.sink_set import SinkSet

    for described in json.loads(os.environ["JOBS"]):
        config, run_dir = from_mapping(described["config"]), Path(described["run_dir"])
        sinks = SinkSet([MetricsLog(), RoutingLog()]) if world.rank() == 0 else None
        job = engine.TrainingJob(
            config=config,
            data_paths=(),
            data_cache=run_dir / "cache",
            vocab_size=MOCK_VOCAB_SIZE,
            end_of_document=0,
            run_dir=run_dir,
            sinks=sinks,
        )
        engine.run(job, choose_machine(config).settings)
        if sinks is not None:
            sinks.close()
    world.leave()


if __name__ == "__main__":
    _run_rank()
