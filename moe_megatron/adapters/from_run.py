"""Adapters of a run, by the names of tensors in its checkpoints, in the one form of adapters."""

from collections.abc import Mapping

from torch import Tensor

from moe_megatron.adapters.low_rank import Adapter, LowRank
from moe_megatron.config import AdapterConfig, Architecture
from moe_megatron.config.adapter import MAGNITUDE, A, B, place_of_tensor
from moe_megatron.families.matrix_places import by_place
from moe_megatron.model.links import links_of


def adapter_of(
    tensors: Mapping[str, Tensor], config: AdapterConfig, architecture: Architecture
) -> Adapter:
    """The adapter of each matrix; what experts share is given to each of them.

    Args:
        tensors: Whole ones, by their names in checkpoints.
        config: What the run trained.
        architecture: Of its model.
    """
    found: dict[str, LowRank] = {}
    for name in by_place(links_of(architecture)):
        place = place_of_tensor(name, architecture.model.num_layers)
        rank = config.rank_of(place)
        a, b, magnitude = (tensors.get(config.tensor_name(name, it)) for it in (A, B, MAGNITUDE))
        if rank is not None and a is not None and b is not None:
            found[name] = LowRank(a, b, config.scale(rank), magnitude)
    return found
