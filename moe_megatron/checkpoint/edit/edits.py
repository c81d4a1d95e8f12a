"""Changes that an import can make to a model: fewer layers or experts, or new experts.

A change produces different links and a different configuration. The code that reads weights, plans
and writes does not know about it.
"""

from moe_megatron.checkpoint.edit.fewer_experts import FewerExperts, with_fewer_experts
from moe_megatron.checkpoint.edit.selection import Model, Selection, selected
from moe_megatron.checkpoint.edit.upcycle import Upcycling, upcycled
from moe_megatron.checkpoint.formats.hf_folder import HfFolder
from moe_megatron.errors import CheckpointError


def edit(
    model: Model,
    folder: HfFolder,
    *,
    selection: Selection,
    experts: FewerExperts | None,
    upcycling: Upcycling | None,
    dtype: str | None,
) -> Model:
    """Apply the requested changes.

    Args:
        model: The whole model.
        folder: The folder with its weights.
        selection: Layers and experts to keep.
        experts: How many experts to keep, by their use.
        upcycling: How to make experts from dense MLPs.
        dtype: Type of all weights; None keeps the type of each.

    Raises:
        CheckpointError: The changes exclude each other, or do not fit the model.
        MappingError: No family can represent the changed model.
    """
    if sum((selection.experts is not None, experts is not None, upcycling is not None)) > 1:
        raise CheckpointError(
            "selecting experts by number, keeping experts by their use, and upcycling exclude each "
            "other; choose one of them."
        )
    if model.family.untrained and not (selection.takes_all and experts is None):
        raise CheckpointError(
            f"a {model.family.name} model does not train here, so that a part of it would be of no "
            "use; convert the whole model, without choosing layers or experts."
        )
    if experts is not None:
        model = with_fewer_experts(model, experts, folder)
    if upcycling is not None:
        model = upcycled(model, upcycling, folder, dtype)
    return model if selection.takes_all else selected(model, selection)
