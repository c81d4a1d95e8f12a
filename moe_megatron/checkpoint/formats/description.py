"""What lies beside the tensors of a Megatron checkpoint and says which model they are."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from moe_megatron.checkpoint.formats.hf_folder import CONFIG
from moe_megatron.checkpoint.formats.side_files import HF_FOLDER
from moe_megatron.config import CONFIG_FILE, RunConfig, load_config
from moe_megatron.errors import CheckpointError
from moe_megatron.families import Family, family_of, family_of_run

BASE_CONFIG = f"{HF_FOLDER}/{CONFIG}"
"""Of the Hugging Face model that it was imported from."""
ORIGIN = f"{HF_FOLDER}/origin.json"
"""What else was particular about that model."""


def run_of(folder: Path) -> RunConfig:
    """The run that a checkpoint belongs to.

    Args:
        folder: That of the tensors.

    Raises:
        CheckpointError: It is not there.
        ConfigError: It is no configuration.
    """
    from moe_megatron.routing import resolve  # torch is slow to import, and little needs it

    path = folder / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing, and says which model the tensors are; put the configuration of "
            "the run there (moe-megatron train --print-config shows it)."
        )
    run = load_config(path)
    return replace(run, moe=resolve(run.moe))


def base_config(folder: Path) -> dict[str, Any] | None:
    """Configuration of the imported model; None where the run began from random weights."""
    return _read_json(folder / BASE_CONFIG)


def origin(folder: Path) -> dict[str, Any]:
    """What an import noted besides: `fused`, `dtypes`."""
    return _read_json(folder / ORIGIN) or {}


def family_of_folder(folder: Path) -> Family:
    """The family as which a checkpoint is exported.

    Raises:
        MappingError: No family has such a model.
    """
    base = base_config(folder)
    return family_of_run(run_of(folder)) if base is None else family_of(base)


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); remove or repair it.") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds no table; remove or repair it.")
    return found
