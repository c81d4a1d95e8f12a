"""What a job starts once on every node: torchrun, for the ranks of that node.

`srun` starts this on each node; where the first rank listens is decided once, by the batch script,
in MASTER_ADDR and MASTER_PORT. The rendezvous is static: all nodes of the allocation take part, or
the job ends. A stop is passed on to the ranks, which save and end; a node whose ranks did so has
not failed, so that `srun --kill-on-bad-exit` kills no other node that is still saving.
"""

import os
import signal
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from moe_megatron.errors import AGAIN, BackendUnavailableError
from moe_megatron.platform.launch import run_torchrun
from moe_megatron.platform.scratch import scratch_folder
from moe_megatron.platform.slurm.run_progress import newest_step
from moe_megatron.telemetry.journal import note


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """The place of this process in a job."""

    job: str
    restart: int
    """How often SLURM has started the job again."""
    nodes: int
    node: int
    """Number of this node, from 0."""
    master_addr: str
    master_port: int

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Read what SLURM and the batch script have set.

        Raises:
            BackendUnavailableError: This process was not started by srun in such a script.
        """
        try:
            return cls(
                job=environment["SLURM_JOB_ID"],
                restart=int(environment.get("SLURM_RESTART_COUNT", "0")),
                nodes=int(environment["SLURM_NNODES"]),
                node=int(environment["SLURM_NODEID"]),
                master_addr=environment["MASTER_ADDR"],
                master_port=int(environment["MASTER_PORT"]),
            )
        except KeyError as missing:
            raise BackendUnavailableError(
                f"{missing.args[0]} is not set: ranks of a job are started by srun, in a script "
                "like those of examples/slurm. On one machine: moe-megatron train."
            ) from missing


def torchrun_words(place: Place, processes: int, target: Sequence[str]) -> list[str]:
    """The arguments of torchrun on this node.

    Args:
        place: Which node of how many.
        processes: Ranks of each node.
        target: A script, or "-m" and a module, followed by its arguments.
    """
    return [
        *("--nnodes", str(place.nodes), "--node-rank", str(place.node)),
        *("--nproc-per-node", str(processes)),
        *("--master-addr", place.master_addr, "--master-port", str(place.master_port)),
        *target,
    ]


def run_node(place: Place, run_dir: Path, words: Sequence[str], *, debug: bool = False) -> int:
    """Run the ranks of this node to their end; the first node notes the attempt in the journal.

    Args:
        place: Which node of how many.
        run_dir: Folder of the run.
        words: From `torchrun_words`.
        debug: Let torchrun log.

    Returns:
        0 if the ranks are done, or have saved because they were asked to stop; else their code.
    """
    first = place.node == 0
    if first:
        run_dir.mkdir(parents=True, exist_ok=True)
        note(
            run_dir,
            "launched",
            host=socket.gethostname(),
            pid=os.getpid(),
            processes=place.nodes * int(words[words.index("--nproc-per-node") + 1]),
            job=place.job,
            restart=place.restart,
            step=newest_step(run_dir),
        )
    told = run_dir if first else None
    _stop_on_usr1(told)
    with scratch_folder() as scratch:
        end = run_torchrun(words, scratch, debug=debug)
    reason = end.deaths[0].explain(end.memory_kills) if end.deaths else ""
    if end.deaths:
        note(run_dir, "rank_died", rank=end.deaths[0].rank, reason=reason)
    note(told, "ended", code=end.code, reason=reason)
    return 0 if end.code == AGAIN else end.code


def _stop_on_usr1(told: Path | None) -> None:
    """Take SIGUSR1, by which a batch script says that time is short, as SIGTERM.

    srun sends it to every process of the step, down to the helpers of ranks, and most of them would
    die of it. Here it is blocked, which ranks inherit; a thread waits for it and asks for the end
    once, of this process, which passes it on. Only this is noted as a stop: SIGTERM comes from srun
    as well, when another node has failed.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})

    def wait() -> None:
        signal.sigwait({signal.SIGUSR1})
        note(told, "stopping", signal="SIGUSR1")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="time is short", daemon=True).start()
