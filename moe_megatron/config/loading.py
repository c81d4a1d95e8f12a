"""Whether a run may load a checkpoint, as far as the configuration beside it says.

It reads no tensor and loads neither torch nor Megatron, so that a launcher can ask before processes
start.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from filecmp import cmp
from pathlib import Path

from moe_megatron.config.checkpoint_files import RELEASE, TRACKER
from moe_megatron.config.loader import CONFIG_FILE, load_config
from moe_megatron.config.moe import MoEConfig
from moe_megatron.config.named import Named
from moe_megatron.config.own_code import changed
from moe_megatron.config.resume import Change, refused_changes
from moe_megatron.config.run import RunConfig
from moe_megatron.errors import CheckpointError, ConfigError
from moe_megatron.files import user_path

logger = logging.getLogger(__name__)

_TOKENS = "tokenizer.json"


def no_checkpoint(checkpoints: Path) -> CheckpointError:
    """The error about a folder without checkpoints."""
    return CheckpointError(
        f"{checkpoints} holds no complete checkpoint ({TRACKER} is missing). Give the "
        "folder that contains the iter_* folders, or leave --load out to start anew."
    )


def check_same_run(
    folder: Path, config: RunConfig, resolve: Callable[[MoEConfig], MoEConfig]
) -> None:
    """Check that the checkpoint of one step belongs to a run.

    Args:
        folder: Folder of the step.
        config: The run that loads it.
        resolve: Fills in the options of a router.

    Raises:
        CheckpointError: Another model was saved, code of the user's has changed, or a run that
            resumes changes what it must keep.
    """
    saved = saved_config(folder)
    if saved is None:
        return
    _check_code(saved.moe, config.moe)
    differences = _differences(saved, config, resolve)
    if differences:
        raise CheckpointError(
            f"{folder} was saved from another model: {'; '.join(differences)}. Load it with the "
            f"configuration beside it (--config {folder / CONFIG_FILE}), or choose a checkpoint of "
            "this model."
        )
    if changes := _refused(folder, saved, config):
        raise CheckpointError(
            f"{folder} cannot be resumed with these changes: {' '.join(map(str, changes))}"
        )


def _check_code(saved: MoEConfig, wanted: MoEConfig) -> None:
    """Refuse code of the user's own that has changed since the checkpoint."""
    pairs: list[tuple[Named, Named]] = [
        (saved.router, wanted.router),
        (saved.expert, wanted.expert),
    ]
    for theirs, ours in pairs:
        if ours.name == theirs.name and not ours.is_code_of(theirs):
            raise CheckpointError(
                changed(ours.name, str(ours.sha256), str(theirs.sha256), ours.FIELD)
            )


def _continues(folder: Path, config: RunConfig) -> bool:
    """Whether a run goes on from a checkpoint of its own, rather than from one of another run."""
    return folder.resolve().is_relative_to(Path(config.run_dir).resolve())


def _refused(folder: Path, saved: RunConfig, config: RunConfig) -> list[Change]:
    if folder.name == RELEASE or "finetune" in config.megatron:
        return []
    continues = _continues(folder, config)
    return [
        change
        for change in refused_changes(saved, config)
        if continues or change.kept.of_other_runs
        if change.name != "data.tokenizer" or not _same_tokens(folder, config)
    ]


def _same_tokens(folder: Path, config: RunConfig) -> bool:
    """Whether the tokenizer is the one beside the checkpoint, which has moved."""
    files = (folder / "hf" / _TOKENS, user_path(config.data.tokenizer) / _TOKENS)
    return all(file.is_file() for file in files) and cmp(*files, shallow=False)


def saved_config(folder: Path) -> RunConfig | None:
    """The configuration beside a checkpoint; None if there is none that can be read."""
    path = folder / CONFIG_FILE
    if not path.exists():
        return None
    try:
        return load_config(path)
    except ConfigError as error:
        logger.warning("cannot compare with the configuration beside the checkpoint: %s", error)
        return None


def _differences(
    saved: RunConfig, wanted: RunConfig, resolve: Callable[[MoEConfig], MoEConfig]
) -> list[str]:
    ours, theirs = (replace(run.architecture, moe=resolve(run.moe)) for run in (wanted, saved))
    names = ours.field_names("tensors", "function", adjustable=False)
    return [
        f"{it.name} is {it.theirs} there and {it.ours} here"
        for it in ours.differences(theirs, names)
    ]
