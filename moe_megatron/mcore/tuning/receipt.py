"""How many parameters of the whole model a run trains, by role: each counted once.

Which copies of a parameter on different ranks are the same is Megatron's to say
(`state/sharded.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.mapping import is_main_replica

from moe_megatron.config.adapter import is_of_adapter
from moe_megatron.config.parameter_roles import ROLES, Role
from moe_megatron.mcore import world
from moe_megatron.mcore.state.sharded import sharded_tensors
from moe_megatron.mcore.tuning.places import placed_parameters


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """Numbers of parameters, in single weights."""

    by_role: Mapping[Role, tuple[int, int]]
    """Trained ones and all, of each role that the model has."""
    of_adapters: int = 0
    """Those of adapters, which count for the role of their matrix."""

    @property
    def trained(self) -> int:
        """Those that are trained."""
        return sum(trained for trained, _ in self.by_role.values())

    @property
    def total(self) -> int:
        """All."""
        return sum(total for _, total in self.by_role.values())

    def __str__(self) -> str:
        parts = [
            f"{role} {trained:,} of {total:,}"
            for role, (trained, total) in self.by_role.items()
            if trained
        ]
        frozen = [role for role, (trained, _) in self.by_role.items() if not trained]
        return (
            f"training {self.trained:,} of {self.total:,} parameters "
            f"({100 * self.trained / max(self.total, 1):.1f} %): {', '.join(parts)}"
            + (f"; frozen: {', '.join(frozen)}" if frozen else "")
        )


def count_parameters(chunks: list[Any]) -> ParameterCount:
    """Count them over all ranks; every rank must call it.

    Args:
        chunks: Megatron's model chunks of this rank, not wrapped.
    """
    known = {_address(it): (place.role, it) for place, it in placed_parameters(chunks)}
    counts = torch.zeros(len(ROLES), 3, dtype=torch.int64)
    for part in (part for chunk in chunks for part in sharded_tensors(chunk)):
        if is_main_replica(part.replica_id) and (found := known.get(_address(part.data))):
            role, parameter = found
            counts[ROLES.index(role), 0 if parameter.requires_grad else 1] += part.data.numel()
            counts[ROLES.index(role), 2] += part.data.numel() * is_of_adapter(part.key)
    counts = counts.to(world.device())
    dist.all_reduce(counts)
    numbers = zip(ROLES, counts.tolist(), strict=True)
    by_role = {it: (new, new + old) for it, (new, old, _) in numbers if new + old}
    return ParameterCount(by_role, of_adapters=int(counts[:, 2].sum()))


def _address(tensor: Any) -> int:
    return int(tensor.untyped_storage().data_ptr())
