"""The element types of weights, as config.json and the notes beside a checkpoint record them.

Megatron keeps a few tensors in another type than the model was published in; the notes of an
import say which, so that an export restores them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from moe_megatron.checkpoint.formats import dtypes
from moe_megatron.checkpoint.formats.hf_folder import HfFolder
from moe_megatron.checkpoint.formats.torch_dist import TorchDist
from moe_megatron.families.links import PACKED, Link

_TORCH_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


def imported_config(folder: HfFolder, links: Sequence[Link], dtype: str | None) -> dict[str, Any]:
    """The configuration of the folder with the type that the weights will have."""
    config = dict(folder.config)
    quantised = any(
        block.transform in PACKED or folder.tensors[block.name].dtype in dtypes.EIGHT_BIT_FLOATS
        for link in links
        for block in link.blocks
    )
    if quantised:
        config.pop("quantization_config", None)
    return _with_dtype(config, dtype or "BF16") if quantised or dtype else config


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    key = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
    return config | {key: _TORCH_NAMES[dtype]}


def changed_dtypes(folder: HfFolder, links: Sequence[Link]) -> dict[str, str]:
    """Original types, by name, of the tensors that Megatron requires in another type."""
    return {
        block.name: folder.tensors[block.name].dtype
        for link in links
        if link.dtype is not None
        for block in link.blocks
        if folder.tensors[block.name].dtype != link.dtype
    }


def known_dtypes(origin: Mapping[str, Any]) -> dict[str, str]:
    """What `changed_dtypes` noted, read from a file that may hold anything."""
    found = origin.get("dtypes")
    if not isinstance(found, dict):
        return {}
    return {str(k): v for k, v in found.items() if isinstance(v, str) and v in dtypes.FLOATS}


def exported_config(config: dict[str, Any], saved: TorchDist, dtype: str | None) -> dict[str, Any]:
    """The configuration with the type that the exported weights have."""
    embedding = saved.tensors.get("embedding.word_embeddings.weight")
    if dtype is None and embedding is not None and config.keys() & {"dtype", "torch_dtype"}:
        dtype = embedding.dtype
    return config if dtype is None else _with_dtype(config, dtype)
