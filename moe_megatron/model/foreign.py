"""Models in other formats: Hugging Face folders, Megatron checkpoints, Hub ids.

They are read and written by a bridge, which registers itself with `connect` when it is imported
(as `moe_megatron.checkpoint.model_folder` does). Without a bridge, such models are refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from torch import Tensor

from moe_megatron.config import Architecture
from moe_megatron.config.checkpoint_files import is_megatron_checkpoint
from moe_megatron.errors import BackendUnavailableError
from moe_megatron.model import storage
from moe_megatron.text.tokenizer import Tokenizer

Format = Literal["moe_megatron", "hugging_face", "megatron"]
"""Format of a saved model: ours, a Hugging Face folder, or a Megatron checkpoint for `--load`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model as a bridge reads it, from which a `MoEModel` is built."""

    architecture: Architecture
    tensors: dict[str, Tensor]
    """Its parameters, by name."""
    left_out: tuple[str, ...] = field(default=())
    """Descriptions of the parts of the folder that `MoEModel` does not use."""
    tokenizer_folder: Path | None = None
    """Where its tokenizer would lie."""


class Bridge(Protocol):
    """Reads and writes models in other formats."""

    def load(self, source: str | Path, *, expected: str | None = None) -> LoadedModel:
        """Read a model from a folder or a Hub id; it must be of the expected family, if given."""

    def save(
        self,
        destination: Path,
        architecture: Architecture,
        tensors: Mapping[str, Tensor],
        *,
        as_megatron: bool,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        """Write a model and its tokenizer into a new folder, for Hugging Face or for Megatron."""


_bridges: list[Bridge] = []


def connect(bridge: Bridge) -> None:
    """Use this bridge from now on, in place of any earlier one."""
    _bridges[:] = [bridge]


def bridge() -> Bridge:
    """The connected bridge.

    Raises:
        BackendUnavailableError: No bridge has been imported.
    """
    if not _bridges:
        raise BackendUnavailableError(
            "Hugging Face and Megatron models are read and written by "
            "moe_megatron.checkpoint.model_folder, which was not imported; import MoEModel from "
            "moe_megatron."
        )
    return _bridges[0]


def is_foreign(path: Path) -> bool:
    """Whether a path is anything but a folder that `MoEModel.save_pretrained` wrote."""
    if not path.exists() or is_megatron_checkpoint(path):
        return True
    model_type = storage.model_type(path)
    return model_type is not None and model_type != storage.MODEL_TYPE
