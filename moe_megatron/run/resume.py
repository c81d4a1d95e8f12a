"""Chooses the checkpoint that a run starts from or goes back to, before anything of it is read.

All ranks check a part of each candidate and agree on what they find. It does not load.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from moe_megatron.checkpoint.integrity.check import Finding, check_folder
from moe_megatron.checkpoint.integrity.newest_valid import (
    Chosen,
    candidates,
    choose,
    repair_tracker,
    sealed,
    set_aside,
)
from moe_megatron.config import RunConfig
from moe_megatron.config.checkpoint_files import step_of
from moe_megatron.mcore import world
from moe_megatron.run.folder import checkpoints_of
from moe_megatron.telemetry.journal import note


def choose_checkpoint(
    config: RunConfig, backend: str, say: Callable[[str], None] = lambda line: None
) -> Path | None:
    """Choose the newest valid checkpoint in `checkpoint.load`; every rank must call it.

    Damaged checkpoints of this very run are renamed to `*.damaged`, and its tracker file names the
    chosen one afterwards. A folder of another run is only read.

    Args:
        config: The run.
        backend: Communication backend, "gloo" or "nccl".
        say: Called on rank 0 with a line for each checkpoint that is passed over.

    Returns:
        Its folder; None if no checkpoint is to be loaded, or `checkpoint.load` holds none.

    Raises:
        CheckpointError: There are some, and none can be used; the message says why not.
    """
    if config.checkpoint.load is None:
        return None
    world.join(backend)
    return newest_valid(Path(config.checkpoint.load), config, say)


def newest_valid(root: Path, config: RunConfig, say: Callable[[str], None]) -> Path | None:
    """As `choose_checkpoint`, in a folder that is given, by ranks that have joined."""
    folders = _agreed(root, candidates(root))
    with_checksums = _agreed(root, sealed(folders))
    if not folders:
        return None
    chosen = choose(folders, with_checksums, _check_together, fallback=config.checkpoint.fallback)
    if world.rank() == 0:
        _tell(chosen, Path(config.run_dir), say)
        own = root.resolve() == checkpoints_of(config).resolve()
        set_aside(chosen) if own else repair_tracker(chosen)
    world.agree_on_text("")  # nobody reads the tracker file before it is right
    return chosen.found.folder


def _agreed(root: Path, folders: Sequence[Path]) -> list[Path]:
    """What rank 0 sees: file systems may show others something older."""
    names = world.agree_on_text("\0".join(path.name for path in folders))
    return [root / name for name in names.split("\0")] if names else []


def _check_together(folder: Path) -> Finding:
    found = check_folder(folder, part=world.rank(), parts=world.size())
    texts = world.gather_texts("\0".join(found.problems))
    every = dict.fromkeys(text for texts_of in texts for text in texts_of.split("\0") if text)
    return replace(found, state="damaged", problems=tuple(every)) if every else found


def _tell(chosen: Chosen, run_dir: Path, say: Callable[[str], None]) -> None:
    for finding in chosen.passed_over:
        say(f"checkpoint set aside: {finding.folder}: {finding.reason}")
        note(run_dir, "set_aside", step=step_of(finding.folder), reason=finding.reason)
    folder = chosen.found.folder
    if chosen.passed_over:
        say(f"going on from: {folder}")
    if chosen.found.state == "unverified":
        say(f"checkpoint not verified: {folder}: {chosen.found.reason}")
