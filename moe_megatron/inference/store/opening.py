"""The store for a folder: of experts as published, or packed."""

from pathlib import Path

from moe_megatron.checkpoint.formats.hf_folder import HfFolder
from moe_megatron.inference.quantization.packed_config import is_packed
from moe_megatron.inference.store.expert_store import ExpertStore
from moe_megatron.inference.store.hugging_face import HuggingFaceStore
from moe_megatron.inference.store.packed import PackedStore


def open_store(path: Path) -> ExpertStore:
    """The experts of a model folder.

    Raises:
        CheckpointError: It is incomplete or damaged, or its experts cannot be read.
        MappingError: There is no table for its family.
    """
    folder = HfFolder(path, quantized=True)
    return PackedStore(path) if is_packed(folder.config) else HuggingFaceStore(path)
