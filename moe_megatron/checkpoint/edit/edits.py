"""Changes that an import makes to a model on its way: fewer layers or experts, or new experts.

A change gives other links and another configuration; what reads weights, plans and writes does not
know that there was one.
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
    """Apply what was asked for.

    Args:
        model: All of it.
        folder: Where its weights are.
        selection: Layers and experts to take.
        experts: How many to keep, by their use.
        upcycling: How to make experts of dense MLPs.
        dtype: Type of all weights; None keeps each.

    Raises:
        CheckpointError: Changes exclude each other, or do not fit the model.
        MappingError: No family has such a model.
    """
    if sum((selection.experts is not None, experts is not None, upcycling is not None)) > 1:
        raise CheckpointError(
            "numbers of experts, how many to keep by their use, and upcycling exclude each other; "
            "choose one of them."
        )
    if experts is not None:
        model = with_fewer_experts(model, experts, folder)
    if upcycling is not None:
        model = upcycled(model, upcycling, folder, dtype)
    return model if selection.takes_all else selected(model, selection)
