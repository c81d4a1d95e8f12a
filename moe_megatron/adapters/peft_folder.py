"""A folder in PEFT's format, and the note beside it that says of which base the adapter is.

    adapter_config.json          PEFT's: ranks, scales, targets
    adapter_model.safetensors    PEFT's: A and B
    moe_megatron_adapter.json    ours: the hash of the base

Nothing that is read runs code: JSON and safetensors, bounded, and every field checked. It does not
know where adapters come from.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from moe_megatron.adapters.from_peft import check_kind, from_peft
from moe_megatron.adapters.low_rank import LowRank, check_finite
from moe_megatron.adapters.pieces import Pieces
from moe_megatron.adapters.to_peft import PeftAdapter
from moe_megatron.checkpoint.execute.publish import check_free, publish, staging_of
from moe_megatron.checkpoint.formats.hf_folder import read_header
from moe_megatron.checkpoint.formats.own_files import check_own
from moe_megatron.config.checks import clipped
from moe_megatron.errors import CheckpointError
from moe_megatron.reading import read_json
from moe_megatron.tensor_file import save_tensors

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
NOTE = "moe_megatron_adapter.json"
_PICKLED = "adapter_model.bin"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """The content of a folder, not yet fitted to a model."""

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    base: str | None
    """The hash of the base that it was trained on; None: the folder does not say."""

    def fitted(self, layouts: Sequence[Pieces]) -> dict[str, LowRank]:
        """The adapter of a model.

        Args:
            layouts: The model in the layouts of transformers 5 and 4, or one of them.

        Raises:
            CheckpointError: It belongs to another model, or is damaged.
            MappingError: It is more than low-rank adapters.
        """
        found = from_peft(self.config, self.tensors, layouts)
        check_finite(found, self.path)
        return found

    def check_kind(self) -> None:
        """Refuse what is no adapter of low rank.

        Raises:
            MappingError: It is more than that, or something else.
        """
        check_kind(self.config)

    def check_base(self, base: str) -> None:
        """Refuse a model that the adapter was not trained on; without a note any is taken.

        Args:
            base: The hash of the model.

        Raises:
            CheckpointError: It is another one.
        """
        if self.base is not None and self.base != base:
            raise CheckpointError(
                f"the adapter in {self.path} was trained on another base: the matrices of that one "
                f"have the hash {_short(self.base)}, those of this model {_short(base)}. Give the "
                f"model that it was trained on; or, if this one is meant, remove {NOTE} from the "
                "folder."
            )


def is_adapter_folder(path: Path) -> bool:
    """Whether a folder holds an adapter in PEFT's format."""
    return (path / CONFIG).is_file()


def read_folder(path: Path) -> AdapterFolder:
    """Read a folder in PEFT's format, from any program.

    Raises:
        CheckpointError: A file is missing, damaged, or pickled.
    """
    if not is_adapter_folder(path):
        raise CheckpointError(
            f"{path} holds no {CONFIG}; give the folder of an adapter in PEFT's format, as "
            "moe-megatron adapter export or save_pretrained of peft writes it."
        )
    if not (path / WEIGHTS).is_file():
        pickled = (path / _PICKLED).is_file()
        raise CheckpointError(
            f"{path} holds no {WEIGHTS}"
            + (
                f", only {_PICKLED}, which is pickled, and reading that can execute code; save the "
                "adapter again with a newer peft."
                if pickled
                else "; copy the whole folder again."
            )
        )
    return AdapterFolder(path, _object(path / CONFIG), _tensors(path), _base(path))


def write_folder(path: Path, adapter: PeftAdapter, base: str) -> None:
    """Write a folder in PEFT's format, whole or not at all.

    Args:
        path: A new or empty folder.
        adapter: What to write.
        base: The hash of the base.

    Raises:
        CheckpointError: The folder holds something, or cannot be written.
    """
    check_free(path)
    staging = staging_of(path)
    try:
        staging.mkdir(parents=True, exist_ok=True)
        save_tensors(adapter.tensors, staging / WEIGHTS, {"format": "pt"})
        (staging / CONFIG).write_text(json.dumps(adapter.config, indent=2) + "\n")
        note = {"version": _VERSION, "base": base}
        (staging / NOTE).write_text(json.dumps(note, indent=2) + "\n")
        publish(staging, path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"an adapter cannot be written to {path}: {error}. Check that the folder is writable "
            "and has space."
        ) from error


def _tensors(path: Path) -> dict[str, Tensor]:
    file = path / WEIGHTS
    check_own(file, path)
    read_header(file)  # sizes and ranges, before a library maps it
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(
            f"{file} is not a whole safetensors file ({error}); copy or save the adapter again."
        ) from error


def _base(path: Path) -> str | None:
    if not (path / NOTE).is_file():
        return None
    note = _object(path / NOTE)
    base = note.get("base")
    if note.get("version") != _VERSION or not isinstance(base, str):
        raise CheckpointError(
            f"{path / NOTE} is of the version {clipped(str(note.get('version')))}, and "
            f"{_VERSION} is needed; export the adapter again with this version of moe_megatron."
        )
    return base


def _object(path: Path) -> dict[str, Any]:
    check_own(path, path.parent)
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read as JSON ({error}); copy or save the adapter again."
        ) from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is not a JSON object; copy or save the adapter again.")
    return found


def _short(base: str) -> str:
    return f"{clipped(base)[:19]}..."
