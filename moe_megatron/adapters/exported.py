"""From the checkpoint of a run, or from memory, to a folder in PEFT's format."""

from pathlib import Path

from moe_megatron.adapters.base_hash import hash_of_folder, hash_of_model
from moe_megatron.adapters.hf_layouts import layouts_of_folder, layouts_of_model
from moe_megatron.adapters.low_rank import Adapter
from moe_megatron.adapters.peft_folder import write_folder
from moe_megatron.adapters.run_adapter import read_run_adapter
from moe_megatron.adapters.to_peft import to_peft
from moe_megatron.checkpoint.execute.publish import check_apart, check_free
from moe_megatron.model import MoEModel

_PREDICTION = "mtp."


def export_adapter(source: Path, destination: Path, *, base: str | None = None) -> Adapter:
    """Write the adapter of a run in PEFT's format.

    Args:
        source: The checkpoint of a run with adapters.
        destination: A new or empty folder.
        base: Name or path of the base, which programs load unless they are given another one.

    Returns:
        What was written. Adapters of layers for multi-token prediction are not in it, which
        transformers does not have.

    Raises:
        CheckpointError: There is no adapter, or the folder holds something or cannot be written.
        MappingError: No family can express the model, or PEFT not the adapter.
    """
    check_apart(destination, source)
    check_free(destination)
    layouts = layouts_of_folder(source)
    adapter = _without_prediction(read_run_adapter(source))
    written = to_peft(adapter, layouts.fused, is_moe=layouts.family.is_moe, base=base)
    write_folder(destination, written, hash_of_folder(source))
    return adapter


def save_adapter(
    adapter: Adapter, model: MoEModel, destination: Path, *, base: str | None = None
) -> None:
    """Write an adapter in PEFT's format.

    Args:
        adapter: The adapter.
        model: Its base.
        destination: A new or empty folder.
        base: As in `export_adapter`.

    Raises:
        CheckpointError: It belongs to another model, or the folder cannot be written.
        MappingError: No family can express the model, or PEFT not the adapter.
    """
    check_free(destination)
    layouts = layouts_of_model(model.architecture)
    found = _without_prediction(adapter)
    written = to_peft(found, layouts.fused, is_moe=layouts.family.is_moe, base=base)
    write_folder(destination, written, hash_of_model(model))


def _without_prediction(adapter: Adapter) -> Adapter:
    return {place: it for place, it in adapter.items() if not place.startswith(_PREDICTION)}
