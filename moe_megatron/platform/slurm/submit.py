"""Puts a batch job into the run folder and into the queue.

RUN/slurm/ gets the script, the site's `_env.sh` and `_job.sh` as they are now, so that a job that
waits for days does not change with the checkout; and `jobs.jsonl`, which notes each job.
"""

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from moe_megatron.errors import ConfigError, DataError
from moe_megatron.files import explained_writes, replace_file
from moe_megatron.platform.slurm.queue import ask
from moe_megatron.platform.slurm.script import COMMON, ENV, EXAMPLES, JOB, BatchJob, render
from moe_megatron.reading import parse_json, read_text
from moe_megatron.telemetry.journal import read_events

FOLDER = "slurm"
SCRIPT = "job.sbatch"
JOBS_FILE = "jobs.jsonl"

_CHECKOUT = Path(__file__).parents[3]


def find_env(given: Path | None) -> Path:
    """The site's `_env.sh`: the given file, or that of the examples.

    Raises:
        ConfigError: There is none.
    """
    candidates = [given] if given else [EXAMPLES / ENV, _CHECKOUT / EXAMPLES / ENV]
    for path in candidates:
        if path.is_file():
            return path
    raise ConfigError(
        f"{candidates[0]} does not exist; give --env FILE, a copy of {EXAMPLES / ENV} with what "
        "your site needs."
    )


def write_job(job: BatchJob, run_dir: Path, env: Path) -> Path:
    """Write the script and what it sources into the run folder; returns the script.

    Raises:
        DataError: The folder cannot be written.
    """
    folder = run_dir / FOLDER
    with explained_writes(folder):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(COMMON, folder / JOB)
        if env.resolve() != (folder / ENV).resolve():
            shutil.copyfile(env, folder / ENV)
        script = folder / SCRIPT
        replace_file(script, [render(job).encode()])
    return script


def submit(script: Path, *, jobs: int = 1) -> list[str]:
    """Submit a script of a run folder; returns the numbers of the jobs.

    Args:
        script: From `write_job`.
        jobs: Number of jobs; more than one are a chain, of which one runs at a time.

    Raises:
        BackendUnavailableError: sbatch is not there, or refuses.
    """
    chained = ["--dependency=singleton"] if jobs > 1 else []
    # SBATCH_ACCOUNT and the like, which the site's file may set, are read by sbatch itself.
    source = '. "$0" && exec sbatch --parsable "$@"'
    words = ["bash", "-c", source, str(script.with_name(ENV)), *chained, str(script)]
    numbers: list[str] = []
    for _ in range(jobs):
        number = ask(words, program="sbatch").strip().splitlines()[-1].partition(";")[0]
        numbers.append(number)
        line = json.dumps({"time": round(time.time(), 3), "job": number}) + "\n"
        with script.with_name(JOBS_FILE).open("a", encoding="utf-8") as file:
            file.write(line)
    return numbers


def jobs_of(run_dir: Path) -> Sequence[str]:
    """The jobs of a run, oldest first: those submitted here, and those that have started ranks."""
    found: dict[str, None] = {}
    jobs = run_dir / FOLDER / JOBS_FILE
    try:
        for line in read_text(jobs).splitlines():
            found[str(parse_json(line)["job"])] = None
    except FileNotFoundError:
        pass
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise DataError(
            f"{jobs} does not list jobs, one a line ({error}); remove it, and name the job to "
            "squeue and scancel yourself."
        ) from error
    for event in read_events(run_dir):
        if event.kind == "launched" and (job := event.fields.get("job")):
            found[str(job)] = None
    return [*found]
