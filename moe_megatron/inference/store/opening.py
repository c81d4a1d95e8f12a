"""The store for a model folder: its own experts, as published or packed, or those at an address.

A place of another kind is one function in a file of its own:

    @register_store("scheme")
    def opened(address: str, model: Path) -> ExpertStore: ...
"""

from collections.abc import Callable
from pathlib import Path

from moe_megatron.checkpoint.formats.hf_folder import HfFolder
from moe_megatron.config.checks import clipped, join_words
from moe_megatron.errors import ConfigError
from moe_megatron.inference.quantization.packed_config import is_packed
from moe_megatron.inference.store.expert_store import ExpertStore
from moe_megatron.inference.store.hugging_face import HuggingFaceStore
from moe_megatron.inference.store.packed import PackedStore
from moe_megatron.inference.store.stacked import StackedStore, is_stacked
from moe_megatron.inference.store.zarr import ZarrStore

_FILE = "file"
Opened = Callable[[str, Path], ExpertStore]
"""From an address and the model's folder."""
_STORES: dict[str, Opened] = dict.fromkeys((_FILE, "s3", "gs"), ZarrStore)


def register_store[Made: Opened](scheme: str) -> Callable[[Made], Made]:
    """Register what opens addresses that begin with `scheme://`, as a decorator."""

    def register(made: Made) -> Made:
        _STORES[scheme] = made
        return made

    return register


def open_store(path: Path, experts: str | Path | None = None) -> ExpertStore:
    """The experts of a model folder.

    Args:
        path: The folder.
        experts: Where its experts are, if not in it: an address, or a folder.

    Raises:
        CheckpointError: It is incomplete or damaged, or its experts cannot be read.
        ConfigError: There is no store for such an address.
        MappingError: There is no table for its family.
    """
    if experts is not None:
        address = str(experts)
        scheme = address.partition("://")[0] if "://" in address else _FILE
        if scheme not in _STORES:
            raise ConfigError(
                f"experts ({clipped(scheme)}://...) must be a folder, or begin with "
                f"{join_words([f'{it}://' for it in _STORES])}; another kind is a function under "
                "@register_store."
            )
        return _STORES[scheme](address, path)
    folder = HfFolder(path, quantized=True)
    if is_packed(folder.config):
        return PackedStore(path)
    return StackedStore(path) if is_stacked(folder) else HuggingFaceStore(path)
