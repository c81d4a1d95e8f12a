"""`moe-megatron slurm status` and `logs`: where a run and its jobs are, and what they say."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from moe_megatron.cli.parser import Parser
from moe_megatron.config import CONFIG_FILE, load_config
from moe_megatron.errors import BackendUnavailableError, DataError
from moe_megatron.files import user_path
from moe_megatron.platform.slurm import logs as log_files
from moe_megatron.platform.slurm.queue import describe_job
from moe_megatron.platform.slurm.run_progress import newest_step, read_progress
from moe_megatron.platform.slurm.submit import jobs_of
from moe_megatron.platform.slurm.verdict import judge, meaning
from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE, read_metrics_after

_SHOWN_JOBS = 5


def status(argv: Sequence[str]) -> int:
    """Print where the queue, the steps and the checkpoints of a run are."""
    parser = _parser("status", "Say where a run and its jobs are.")
    run_dir: Path = parser.parse_args(argv).run_dir
    target = target_of(run_dir)
    saved = newest_step(run_dir)
    lines = [f"run         {run_dir}"]
    for job in jobs_of(run_dir)[-_SHOWN_JOBS:]:
        try:
            lines.append(f"job {job:<7} {describe_job(job)}")
        except BackendUnavailableError as error:
            lines.append(f"job {job:<7} unknown: {error}")
            break
    lines.append(f"last step   {_last_step(run_dir, saved or 0) or 'none'} of {target}")
    lines.append(f"checkpoint  {'none' if saved is None else f'step {saved}'}")
    verdict = judge(read_progress(run_dir, target, None))
    lines.append(f"verdict     {verdict.code}, {meaning(verdict.code)}: {verdict.reason}")
    print("\n".join(lines))
    return 0


def logs(argv: Sequence[str]) -> int:
    """Show the end of a log, and what is added to it with --follow."""
    parser = _parser("logs", "Show the output of a run's jobs; the first node's by default.")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--node", type=int, default=0, metavar="N", help="of this node")
    which.add_argument("--rank", type=int, metavar="N", help="Megatron's own, of this rank")
    which.add_argument("--batch", action="store_true", help="of the batch script")
    parser.add_argument("--follow", "-f", action="store_true", help="go on as it grows")
    parser.add_argument("--lines", type=int, default=40, metavar="N", help="lines (default: 40)")
    options = parser.parse_args(argv)
    run_dir: Path = options.run_dir
    if options.batch:
        found = log_files.batch_logs(run_dir)
        if not found:
            raise DataError(
                f"{run_dir} has no log of a batch script: no job was submitted from there, or none "
                "has started."
            )
        path = found[-1]
    elif options.rank is not None:
        path = log_files.rank_log(run_dir, options.rank)
    else:
        path = log_files.node_log(run_dir, options.node)
    print(f"{path}:", flush=True)
    follow = ["-F"] if options.follow else []
    os.execvp("tail", ["tail", "-n", str(max(options.lines, 0)), *follow, "--", str(path)])


def target_of(run_dir: Path) -> int:
    """The last step of a run.

    Raises:
        DataError: The folder holds no run.
    """
    file = run_dir / CONFIG_FILE
    if not file.is_file():
        raise DataError(
            f"{run_dir} holds no run ({CONFIG_FILE} is missing). Give the folder of a run, such as "
            "runs/demo_moe."
        )
    return load_config(file).training.train_steps


def _last_step(run_dir: Path, saved: int) -> int:
    """The last step that was made; `saved` is the one from which to look."""
    path = run_dir / METRICS_FILE
    if not path.exists():
        return saved
    return max((record.step for record in read_metrics_after(path, saved)), default=saved)


def _parser(action: str, description: str) -> argparse.ArgumentParser:
    parser = Parser(prog=f"moe-megatron slurm {action}", description=description)
    parser.add_argument("run_dir", type=user_path, metavar="RUN", help="folder of a run")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    return parser
