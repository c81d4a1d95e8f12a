"""Models as folders: `model.safetensors` holds the weights, `config.json` the configuration.

The weights file carries a copy of the configuration, so that two files from different saves are
noticed. Nothing is ever pickled. This module does not know what the tensors are for.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from moe_megatron.config import Architecture, RunConfig, from_mapping, to_mapping
from moe_megatron.config.checkpoint_files import instead_of_model
from moe_megatron.errors import CheckpointError, ConfigError
from moe_megatron.files import replace_file
from moe_megatron.reading import parse_json, read_json
from moe_megatron.tensor_file import save_tensors

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
MODEL_TYPE = "moe_megatron"
_METADATA_KEY = "moe_megatron_config"
_WANTED = "a folder written by MoEModel.save_pretrained, or a Hugging Face model folder"

WeightMap = dict[str, Tensor]
"""The parameters of a model, by name."""


def _to_json(architecture: Architecture) -> str:
    """The content of `config.json`."""
    run = to_mapping(RunConfig(model=architecture.model, moe=architecture.moe))
    fields = {"model": run["model"], "moe": run["moe"], "vocab_size": architecture.vocab_size}
    return json.dumps({"model_type": MODEL_TYPE, "format": 2, **fields}, indent=2) + "\n"


def save(folder: Path, architecture: Architecture, tensors: Mapping[str, Tensor]) -> None:
    """Write both files; each is either old or new, never partial, even if the machine crashes.

    Raises:
        CheckpointError: The folder holds another kind of model, or cannot be written.
    """
    config_path = folder / CONFIG_FILE
    if config_path.exists() and _read_json(config_path).get("model_type") != MODEL_TYPE:
        raise CheckpointError(
            f"{folder} holds another kind of model, which saving here would destroy; choose a "
            "new folder."
        )
    text = _to_json(architecture)
    temporary = folder / f".{WEIGHTS_FILE}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_tensors(whole, temporary, {"format": "pt", _METADATA_KEY: text})
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(folder / WEIGHTS_FILE)
        replace_file(config_path, [text.encode()])
    except OSError as error:
        raise CheckpointError(
            f"cannot write a model to {folder}: {error}. Check that it is a folder, is writable "
            "and has space."
        ) from error
    finally:
        if folder.is_dir():
            temporary.unlink(missing_ok=True)


def model_type(folder: Path) -> str | None:
    """The `model_type` in the configuration of a folder; None if there is no configuration.

    Raises:
        CheckpointError: The file is not JSON.
    """
    path = folder / CONFIG_FILE
    return str(_read_json(path).get("model_type")) if path.is_file() else None


def load(folder: Path, device: torch.device | str) -> tuple[Architecture, dict[str, Tensor]]:
    """Read both files.

    Raises:
        CheckpointError: A file is missing or damaged, or the two are not from the same save.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} has no {name}; {instead_of_model(folder, _WANTED)}.")
    values = _read_json(folder / CONFIG_FILE)
    architecture = _architecture(folder, values)
    try:
        with safe_open(folder / WEIGHTS_FILE, framework="pt", device=str(device)) as file:
            saved = (file.metadata() or {}).get(_METADATA_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(
            f"{folder / WEIGHTS_FILE} is not a whole safetensors file ({error}); copy or save the "
            "model again."
        ) from error
    if saved is not None and _parsed(saved) != values:
        raise CheckpointError(
            f"{CONFIG_FILE} and {WEIGHTS_FILE} in {folder} are from different models: a save was "
            "interrupted, or a file was changed; save the model again."
        )
    return architecture, tensors


def assign(model: nn.Module, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Make the tensors the parameters of the model, without copying.

    Raises:
        CheckpointError: The names or shapes differ from those of the model.
    """
    wanted = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: list(tensor.shape) for name, tensor in tensors.items()}
    wrong = [
        *(f"{name} is missing" for name in wanted.keys() - given.keys()),
        *(f"{name} is unexpected" for name in given.keys() - wanted.keys()),
        *(
            f"{name} has the shape {given[name]} and must have {wanted[name]}"
            for name in wanted.keys() & given.keys()
            if given[name] != wanted[name]
        ),
    ]
    if wrong:
        raise CheckpointError(
            f"{folder / WEIGHTS_FILE} does not fit its {CONFIG_FILE} in {len(wrong)} tensors, "
            f"first: {min(wrong)}; use the two files of one save."
        )
    model.load_state_dict(tensors, assign=True)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read as JSON ({error}); copy or save the model again."
        ) from error
    return values if isinstance(values, dict) else {}


def _parsed(text: str) -> object:
    try:
        found: object = parse_json(text)
    except ValueError:
        return None
    return found


def _architecture(folder: Path, values: Mapping[str, Any]) -> Architecture:
    try:
        run = from_mapping({key: values[key] for key in ("model", "moe")})
        vocab_size = int(values["vocab_size"])
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} does not describe a model ({error}); it was changed, or "
            "written by another version of moe_megatron. Save the model again."
        ) from error
    return Architecture(model=run.model, moe=run.moe, vocab_size=vocab_size)
