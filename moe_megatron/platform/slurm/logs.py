"""Where the output of a job is.

RUN/slurm/JOB.log                       of the batch script
RUN/slurm/logs/JOB.ATTEMPT/nodeN.log    of a node: console, and the last words of its ranks
RUN/logs/rankN.log                      of a rank: Megatron's own output, of all attempts
"""

from collections.abc import Iterable
from pathlib import Path

from moe_megatron.errors import DataError
from moe_megatron.platform.slurm.submit import FOLDER


def batch_logs(run_dir: Path) -> list[Path]:
    """The logs of batch scripts that were submitted from the run folder, oldest first."""
    return _oldest_first((run_dir / FOLDER).glob("*.log"))


def node_log(run_dir: Path, node: int) -> Path:
    """The log of a node in the newest attempt.

    Raises:
        DataError: There is none.
    """
    attempts = _oldest_first((run_dir / FOLDER / "logs").glob("*/"))
    if not attempts:
        raise DataError(
            f"{run_dir} has no logs of nodes yet: no job has started ranks. `moe-megatron slurm "
            f"status {run_dir}` says what it waits for."
        )
    return _existing(attempts[-1] / f"node{node}.log", "nodes are numbered from 0")


def rank_log(run_dir: Path, rank: int) -> Path:
    """The log of a rank.

    Raises:
        DataError: There is none.
    """
    return _existing(run_dir / "logs" / f"rank{rank}.log", "ranks are numbered from 0")


def _existing(path: Path, hint: str) -> Path:
    if not path.exists():
        there = ", ".join(sorted(other.stem for other in path.parent.glob("*.log"))) or "none"
        raise DataError(f"{path} does not exist; {hint}, and there are logs of: {there}.")
    return path


def _oldest_first(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: (path.stat().st_mtime, path.name))
