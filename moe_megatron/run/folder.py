"""Run folders: one folder holds one run, and a new run never overwrites an old one."""

from pathlib import Path

from moe_megatron.checkpoint.integrity.newest_valid import candidates
from moe_megatron.config import CONFIG_FILE, RunConfig, dump_yaml
from moe_megatron.config.checkpoint_files import CHECKPOINTS
from moe_megatron.errors import CheckpointError
from moe_megatron.files import replace_file
from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE


def fresh_run_dir(wanted: Path) -> Path:
    """A folder without a run: the wanted one, or the first free of "<name>-2", "<name>-3", ..."""
    candidate, number = wanted, 1
    while (candidate / METRICS_FILE).exists():
        number += 1
        candidate = wanted.with_name(f"{wanted.name}-{number}")
    return candidate


def make_run_dir(run_dir: Path) -> None:
    """Create the folder of a run if it does not exist.

    Raises:
        CheckpointError: It cannot be created.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(run_dir, error) from error


def write_config(config: RunConfig, run_dir: Path) -> Path:
    """Write the whole configuration of a run into its folder; returns the file.

    Raises:
        CheckpointError: The folder cannot be written.
    """
    make_run_dir(run_dir)
    file = run_dir / CONFIG_FILE
    try:
        replace_file(file, [dump_yaml(config).encode()])
    except OSError as error:
        raise _not_writable(run_dir, error) from error
    return file


def _not_writable(run_dir: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"the run directory {run_dir} cannot be written ({error.strerror}). Change its "
        "permissions or free space, or choose another one with --run-dir."
    )


def check_resumable(run_dir: Path) -> None:
    """Check that a folder holds a run with a checkpoint to resume from.

    Raises:
        CheckpointError: It does not; the message says what to do.
    """
    config = run_dir / CONFIG_FILE
    if not config.exists():
        raise CheckpointError(
            f"{run_dir} holds no run to resume ({config.name} is missing). Give the folder of a "
            "run, such as runs/demo_moe."
        )
    if not candidates(run_dir / CHECKPOINTS):
        raise CheckpointError(
            f"{run_dir} holds no checkpoint to resume from: the run ended before its first one, or "
            "checkpoint.save_interval was null. Start it again with: moe-megatron train --config "
            f"{config}"
        )
