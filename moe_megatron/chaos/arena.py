"""Where a campaign takes place: one folder with text, configurations, runs and small disks."""

import os
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path

from moe_megatron.chaos.victim import Victim
from moe_megatron.config import RunConfig, apply_overrides, load_config
from moe_megatron.config.checkpoint_files import CHECKPOINTS
from moe_megatron.data.demo import ensure_demo
from moe_megatron.files import default_cache_dir
from moe_megatron.run.folder import write_config
from moe_megatron.run.prepared_data import open_indexed_writer

PROCESSES = 4
SAVE_INTERVAL = 20
_DOCUMENTS = 100
_RUN_DISK = "256m"
_LOG_DISK = "8m"


@contextmanager
def arena(folder: Path, steps: int, command: Sequence[str]) -> Iterator[tuple[Victim, Victim]]:
    """Prepare a folder for a campaign.

    Args:
        folder: An empty folder.
        steps: Steps of the training.
        command: Starts a job, in front of the options of `moe-megatron train`.

    Yields:
        The job to harm, and the same job to leave alone. Whatever still runs at the end is killed,
        and the small disks are gone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text, tokenizer = _text(folder / "data")
    with ExitStack() as stack:
        jobs = []
        for name in ("harmed", "untouched"):
            job = _job(folder, name, _config(folder, name, text, tokenizer, steps), command)
            stack.callback(job.end)
            jobs.append(job)
        harmed, untouched = jobs
        harmed.small_disks = os.geteuid() == 0 and all(
            _mounted(stack, place, size)
            for place, size in (
                (harmed.run_dir, _RUN_DISK),
                (harmed.run_dir / "logs", _LOG_DISK),
            )
        )
        yield harmed, untouched


def _text(folder: Path) -> tuple[Path, Path]:
    """Write a part of the demo corpus; returns its file and the folder of its tokenizer."""
    vocabulary = load_config("test_tiny").data.vocab_size
    demo = ensure_demo(default_cache_dir(), open_indexed_writer, vocab_size=vocabulary)
    folder.mkdir()
    text = folder / "text.jsonl"
    with demo.corpus["prose"].open(encoding="utf-8") as corpus:
        text.write_text("".join(islice(corpus, _DOCUMENTS)), encoding="utf-8")
    return text, demo.tokenizer_dir


def _config(folder: Path, name: str, text: Path, tokenizer: Path, steps: int) -> RunConfig:
    return apply_overrides(
        load_config("test_tiny"),
        {
            "run_dir": str(folder / name),
            "data.paths": [str(text)],
            "data.tokenizer": str(tokenizer),
            "data.cache_dir": str(folder / "cache"),
            "training.train_steps": steps,
            "parallel.expert_parallel_size": 2,
            "parallel.tensor_parallel_size": 2,
            "checkpoint.save_interval": SAVE_INTERVAL,
            "checkpoint.keep_last": 3,
            "recovery.max_rollbacks": 1000,
            "recovery.hang_seconds": 15,
            "telemetry.metrics_port": 0,
            "telemetry.plain_console": True,
        },
    )


def _job(folder: Path, name: str, config: RunConfig, command: Sequence[str]) -> Victim:
    temporary, injuries = folder / f"{name}-temporary", folder / f"{name}-injuries"
    temporary.mkdir()
    injuries.mkdir()
    file = write_config(config, folder / f"{name}-config")
    return Victim(
        run_dir=folder / name,
        checkpoints=folder / name / CHECKPOINTS,
        data=folder / "data",
        command=[*command, "--config", str(file), "--num-processes", str(PROCESSES)],
        mark=uuid.uuid4().hex,
        temporary=temporary,
        injuries=injuries,
        log=folder / f"{name}.log",
    )


def _mounted(stack: ExitStack, place: Path, size: str) -> bool:
    """Mount a small disk in memory until the stack is closed; returns whether that is possible."""
    place.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", str(place)]
    with suppress(OSError, subprocess.CalledProcessError):
        subprocess.run(mount, check=True, capture_output=True)
        stack.callback(subprocess.run, ["umount", "--lazy", str(place)], check=False)
        return True
    return False
