"""Whether a run may load a checkpoint, as far as the configuration beside it says.

It reads no tensor and loads neither torch nor Megatron, so that a launcher can ask before processes
start.
"""

import logging
from collections.abc import Callable
from dataclasses import fields, replace
from filecmp import cmp
from pathlib import Path

from moe_megatron.config.adapter import AdapterConfig
from moe_megatron.config.architecture import Difference
from moe_megatron.config.checkpoint_files import RELEASE, TRACKER
from moe_megatron.config.loader import CONFIG_FILE, load_config
from moe_megatron.config.moe import MoEConfig
from moe_megatron.config.named import Named
from moe_megatron.config.own_code import changed
from moe_megatron.config.resume import Change, refused_changes
from moe_megatron.config.router import RouterConfig
from moe_megatron.config.run import RunConfig
from moe_megatron.errors import CheckpointError, ConfigError
from moe_megatron.files import user_path

logger = logging.getLogger(__name__)

_TOKENS = "tokenizer.json"
_FINETUNE = "finetune"
_ROUTER = (RouterConfig.FIELD, "moe.expert_bias")
"""What says how tokens are routed; no tensor but those of the gate depends on it."""


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
    new_run = _is_new_run(config)
    _check_code(saved.moe, config.moe, router=not new_run)
    differences = _differences(saved, config, resolve)
    of_router = [it for it in differences if _is_of_router(it)]
    if differences and not (new_run and of_router == differences):
        on_purpose = (
            " To train its weights with this router on purpose, as a new run, give --finetune and "
            "another --run-dir."
        )
        raise CheckpointError(
            f"{folder} was saved from another model: {'; '.join(map(_shown, differences))}. Load "
            f"it with the configuration beside it (--config {folder / CONFIG_FILE}), or choose a "
            f"checkpoint of this model.{on_purpose if of_router == differences else ''}"
        )
    _check_adapters(folder, saved.adapter, config.adapter)
    if changes := _refused(folder, saved, config):
        raise CheckpointError(
            f"{folder} cannot be resumed with these changes: {' '.join(map(str, changes))}"
        )


def _check_adapters(folder: Path, saved: AdapterConfig, wanted: AdapterConfig) -> None:
    """Refuse a run that would leave adapters of the checkpoint out, or compute others with them."""
    if wanted.on and not wanted.magnitude:
        saved = replace(saved, frozen_experts=wanted.frozen_experts)
    wanted = replace(wanted, dropout=saved.dropout) if wanted.on else wanted
    if not saved.on or saved == wanted:
        return
    changed_fields = [
        it.name for it in fields(saved) if getattr(saved, it.name) != getattr(wanted, it.name)
    ]
    raise CheckpointError(
        f"{folder} holds adapters, which this run would leave out or change: "
        + "; ".join(
            f"adapter.{name} is {getattr(saved, name)} there and {getattr(wanted, name)} here"
            for name in changed_fields
        )
        + f". Load it with the configuration beside it (--config {folder / CONFIG_FILE}), or merge "
        "its adapters into its weights first."
    )


def other_router(
    folder: Path, config: RunConfig, resolve: Callable[[MoEConfig], MoEConfig]
) -> RouterConfig | None:
    """The router that a checkpoint was trained with, where a new run goes on with another one.

    Args:
        folder: Folder of the step.
        config: The run that loads it; `check_same_run` accepts it.
        resolve: Fills in the options of a router.

    Returns:
        The router with its options; None: the run routes as the checkpoint did.
    """
    saved = saved_config(folder) if _is_new_run(config) else None
    if saved is None or not any(map(_is_of_router, _differences(saved, config, resolve))):
        return None
    return resolve(saved.moe).router


def _is_new_run(config: RunConfig) -> bool:
    """Whether the run takes nothing but the weights of what it loads."""
    return _FINETUNE in config.megatron


def _is_of_router(difference: Difference) -> bool:
    return any(difference.name == it or difference.name.startswith(f"{it}.") for it in _ROUTER)


def _check_code(saved: MoEConfig, wanted: MoEConfig, *, router: bool) -> None:
    """Refuse code of the user's own that has changed since the checkpoint."""
    pairs: list[tuple[Named, Named]] = [(saved.expert, wanted.expert)]
    if router:
        pairs.insert(0, (saved.router, wanted.router))
    for theirs, ours in pairs:
        if ours.name == theirs.name and not ours.is_code_of(theirs):
            raise CheckpointError(
                changed(ours.name, str(ours.sha256), str(theirs.sha256), ours.FIELD)
            )


def _continues(folder: Path, config: RunConfig) -> bool:
    """Whether a run goes on from a checkpoint of its own, rather than from one of another run."""
    return folder.resolve().is_relative_to(Path(config.run_dir).resolve())


def _refused(folder: Path, saved: RunConfig, config: RunConfig) -> list[Change]:
    if folder.name == RELEASE or _is_new_run(config):
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
) -> list[Difference]:
    ours, theirs = (replace(run.architecture, moe=resolve(run.moe)) for run in (wanted, saved))
    return ours.differences(theirs, ours.field_names("tensors", "function", adjustable=False))


def _shown(it: Difference) -> str:
    return f"{it.name} is {it.theirs} there and {it.ours} here"
