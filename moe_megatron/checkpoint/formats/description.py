"""The files beside the tensors of a Megatron checkpoint that describe the model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from moe_megatron.config import CONFIG_FILE, RunConfig, load_config
from moe_megatron.config.checkpoint_files import HF_CONFIG, HF_FOLDER
from moe_megatron.config.checks import join_words
from moe_megatron.config.masked_experts import read_masked
from moe_megatron.errors import CheckpointError
from moe_megatron.families import Family, family_of, family_of_run
from moe_megatron.families.choice import FLAGS_OF_UNKNOWN_FUNCTION
from moe_megatron.reading import read_json

BASE_CONFIG = HF_CONFIG
"""Configuration of the Hugging Face model from which the checkpoint was imported."""
ORIGIN = f"{HF_FOLDER}/origin.json"
"""Further facts about that model, needed for an export: `fused` and `dtypes`."""


def run_of(folder: Path) -> RunConfig:
    """The configuration of the run that a checkpoint belongs to.

    Args:
        folder: The folder of the tensors.

    Raises:
        CheckpointError: The folder has no configuration.
        ConfigError: The configuration is invalid.
    """
    from moe_megatron.experts import resolve  # imports torch, which is slow and rarely needed

    path = folder / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{path}, which describes the model of the tensors, is missing; put the configuration "
            "of the run there (moe-megatron train --print-config shows it)."
        )
    run = load_config(path)
    return replace(run, moe=resolve(run.moe))


def check_whole(folder: Path, run: RunConfig) -> None:
    """Refuse a model that another program would compute differently, or with NaN.

    Flags of Megatron that only say how to train, log or profile are none of its business.

    Args:
        folder: The folder of the tensors.
        run: The configuration of the run.

    Raises:
        CheckpointError: Experts are masked, which weights alone cannot say, or a flag of Megatron
            changes what the model computes.
    """
    if masked := sorted(read_masked(folder)):
        named = join_words([f"{expert} of layer {layer}" for layer, expert in masked], "and")
        raise CheckpointError(
            f"{folder} has masked experts (expert {named}): no token is routed to them in "
            "Megatron, and only there, as their weights may be NaN. Resume with --set "
            "recovery.restore_experts=restore, and use what that saves; or use a checkpoint from "
            "before they were masked."
        )
    if flags := [f"--{flag}" for flag in run.megatron if flag in FLAGS_OF_UNKNOWN_FUNCTION]:
        raise CheckpointError(
            f"{folder} was trained with {join_words(flags, 'and')}, which changes what the model "
            "computes and which only Megatron knows; use it there."
        )


def base_config(folder: Path) -> dict[str, Any] | None:
    """Configuration of the imported model; None if the run started from random weights."""
    return _read_json(folder / BASE_CONFIG)


def origin(folder: Path) -> dict[str, Any]:
    """The facts in `origin.json`; empty if the run started from random weights."""
    return _read_json(folder / ORIGIN) or {}


def family_of_folder(folder: Path) -> Family:
    """The family in whose format a checkpoint is exported.

    Raises:
        MappingError: No family can represent the model.
    """
    base = base_config(folder)
    return family_of_run(run_of(folder)) if base is None else family_of(base)


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); remove or repair it.") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is not a JSON object; remove or repair it.")
    return found
