"""Models in folders of other kinds: Hugging Face folders, Megatron checkpoints, ids of the Hub.

Reading and writing them is the work of `moe_megatron.checkpoint`, a package above this one. It is
looked up by its name when such a folder comes along; nothing here imports it.
"""

import importlib
from pathlib import Path
from typing import Any, Literal

from moe_megatron.model import storage

Format = Literal["moe_megatron", "hugging_face", "megatron"]
"""Of a saved model: ours, a Hugging Face folder, or a Megatron checkpoint for `--load`."""
_BRIDGE = "moe_megatron.checkpoint.model_folder"
_MEGATRON_FILES = (".metadata", "latest_checkpointed_iteration.txt")


def is_foreign(path: Path) -> bool:
    """Whether a path is anything but a folder that `MoEModel.save_pretrained` wrote."""
    if not path.exists() or any((path / name).is_file() for name in _MEGATRON_FILES):
        return True
    model_type = storage.model_type(path)
    return model_type is not None and model_type != storage.MODEL_TYPE


def bridge() -> Any:
    """`moe_megatron.checkpoint.model_folder`."""
    return importlib.import_module(_BRIDGE)
