"""The batch script of a training job, as text.

A script holds what differs from job to job; what all have in common is `job.sh`, and what depends
on the site is a file of the site's, `_env.sh`. The scripts of examples/slurm that train are made
here.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_megatron.errors import ConfigError
from moe_megatron.platform.slurm.node_layout import Layout

EXAMPLES = Path("examples") / "slurm"
ENV, JOB = "_env.sh", "_job.sh"
"""Files beside a script: of the site, and common to all scripts."""
COMMON = Path(__file__).with_name("job.sh")
"""The file that is copied, or linked, to `_job.sh`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchJob:
    """One training job."""

    name: str
    """Name of the job. The jobs of a chain have the same, and no other job of the user has it."""
    run_dir: str
    layout: Layout
    words: Sequence[str]
    """What the ranks are told beside the run folder, such as `--config FILE`."""
    time: str = "24:00:00"
    """Time limit of one attempt, as sbatch reads it."""
    grace_seconds: int = 600
    """How long before the limit the ranks are asked to save and end."""
    cores_per_process: int = 1
    """Where ranks have no GPU: cores of each."""
    log: str = "slurm-%x-%j.log"
    """Where sbatch writes the output of the script."""
    folder: str = str(EXAMPLES)
    """Where `_env.sh` and `_job.sh` are when the job runs."""
    made_by: str = ""
    """The command that rendered the script."""
    directives: Sequence[str] = ()
    """Further options of sbatch."""

    def __post_init__(self) -> None:
        if not self.name or any(letter in self.name for letter in " /%\n"):
            raise ConfigError(
                f"a job cannot be called {self.name!r}; give --job-name a word without spaces, "
                "slashes and percent signs."
            )
        for word in self.directives:
            if not word.startswith("-") or "\n" in word:
                raise ConfigError(
                    f"--sbatch needs an option of sbatch, such as --sbatch=--partition=gpu, not "
                    f"'{word}'."
                )


def render(job: BatchJob) -> str:
    """The text of the batch script."""
    made = [f"# Rendered by: {job.made_by}"] if job.made_by else []
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            *made,
            *(f"#SBATCH {directive}" for directive in _directives(job)),
            "set -uo pipefail",
            "",
            f"MOE_RUN=${{MOE_RUN:-{shlex.quote(job.run_dir)}}}",
            f"export MOE_PROCESSES_PER_NODE={job.layout.processes_per_node}",
            f"MOE_SLURM=${{MOE_SLURM:-{shlex.quote(job.folder)}}}",
            f'source "$MOE_SLURM/{ENV}"',
            f'source "$MOE_SLURM/{JOB}"',
            "",
            f'train {shlex.join(job.words)} "$@"',
            "",
        ]
    )


def _directives(job: BatchJob) -> list[str]:
    layout = job.layout
    if layout.gpus:
        machines = [f"--gpus-per-node={layout.processes_per_node}", "--exclusive", "--mem=0"]
    else:
        machines = [f"--cpus-per-task={layout.processes_per_node * job.cores_per_process}"]
    return [
        f"--job-name={job.name}",
        f"--nodes={layout.nodes}",
        "--ntasks-per-node=1",
        *machines,
        f"--time={job.time}",
        f"--signal=B:USR1@{job.grace_seconds}",
        "--requeue",
        "--open-mode=append",
        f"--output={job.log}",
        *job.directives,
    ]
