"""Models in folders of other kinds: Hugging Face folders, Megatron checkpoints, ids of the Hub.

Reading and writing them is the work of a bridge, which introduces itself with `connect` when it is
imported (`moe_megatron.checkpoint.model_folder` does). Without one, such folders are refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from torch import Tensor

from moe_megatron.config import Architecture
from moe_megatron.errors import BackendUnavailableError
from moe_megatron.model import storage

Format = Literal["moe_megatron", "hugging_face", "megatron"]
"""Of a saved model: ours, a Hugging Face folder, or a Megatron checkpoint for `--load`."""
_MEGATRON_FILES = (".metadata", "latest_checkpointed_iteration.txt")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """What a `MoEModel` is built from."""

    architecture: Architecture
    tensors: dict[str, Tensor]
    """Its parameters, by name."""
    left_out: tuple[str, ...] = field(default=())
    """What the folder holds besides, as sentences."""


class Bridge(Protocol):
    """Reads and writes models in folders of other kinds."""

    def load(self, source: str | Path, *, expected: str | None = None) -> LoadedModel:
        """Read a model from a folder or an id of the Hub, of the expected family if one is."""

    def save(
        self,
        destination: Path,
        architecture: Architecture,
        tensors: Mapping[str, Tensor],
        *,
        as_megatron: bool,
    ) -> None:
        """Write a model into a new folder, for Hugging Face or for Megatron."""


_bridges: list[Bridge] = []


def connect(bridge: Bridge) -> None:
    """Use a bridge from now on, in place of the one before."""
    _bridges[:] = [bridge]


def bridge() -> Bridge:
    """The bridge.

    Raises:
        BackendUnavailableError: None was imported.
    """
    if not _bridges:
        raise BackendUnavailableError(
            "models of Hugging Face and Megatron are read and written by "
            "moe_megatron.checkpoint.model_folder, which was not imported; take MoEModel from "
            "moe_megatron."
        )
    return _bridges[0]


def is_foreign(path: Path) -> bool:
    """Whether a path is anything but a folder that `MoEModel.save_pretrained` wrote."""
    if not path.exists() or any((path / name).is_file() for name in _MEGATRON_FILES):
        return True
    model_type = storage.model_type(path)
    return model_type is not None and model_type != storage.MODEL_TYPE
