"""Runs the commands of SLURM, and reads what they print about a job.

It does not know what the jobs do.
"""

import shutil
import subprocess
from collections.abc import Sequence

from moe_megatron.errors import BackendUnavailableError

_SECONDS = 60.0


def ask(words: Sequence[str], *, program: str | None = None) -> str:
    """Run a command of SLURM; returns what it prints.

    Args:
        words: The command.
        program: The program of SLURM that the command starts, if it is not the first word.

    Raises:
        BackendUnavailableError: It is not installed here, fails, or does not answer.
    """
    program = program or words[0]
    if shutil.which(program) is None:
        raise BackendUnavailableError(
            f"'{program}' is not installed here; use a login node of a cluster with SLURM. "
            "`moe-megatron slurm render` works everywhere."
        )
    try:
        answer = subprocess.run(
            list(words), capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as late:
        raise BackendUnavailableError(
            f"'{program}' did not answer within {_SECONDS:.0f} seconds; the controller of SLURM "
            "may be down. Try again later."
        ) from late
    if answer.returncode != 0:
        said = " ".join((answer.stderr or answer.stdout).split())
        raise BackendUnavailableError(f"'{program}' refused: {said}")
    return answer.stdout


def describe_job(job: str) -> str:
    """State of a job in words; "not in the queue" when SLURM has forgotten it."""
    try:
        shown = ask(["scontrol", "--oneliner", "show", "job", job])
    except BackendUnavailableError as error:
        if "Invalid job id" in str(error):
            return "not in the queue"
        raise
    fields = dict(word.partition("=")[::2] for word in shown.split())
    words = [fields.get("JobState", "UNKNOWN").lower()]
    if (reason := fields.get("Reason", "None")) != "None":
        words.append(f"({reason})")
    if (nodes := fields.get("NodeList", "(null)")) not in ("(null)", ""):
        words.append(f"on {nodes}")
    if (restarts := fields.get("Restarts", "0")) != "0":
        words.append(f"started again {restarts} time(s)")
    return " ".join(words)
