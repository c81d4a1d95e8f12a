"""How many matrices of the whole model have adapters, and how much is trained of them."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from moe_megatron.config.parameter_roles import ROLES, Role
from moe_megatron.mcore import world
from moe_megatron.mcore.tuning.adapters.attach import updates_of
from moe_megatron.mcore.tuning.receipt import ParameterCount, count_parameters


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterCount:
    """What is adapted; routers never are."""

    experts: tuple[int, ...]
    """Adapted experts of each layer that has any."""
    matrices: tuple[tuple[Role, int], ...]
    """Adapted matrices of other roles."""
    parameters: ParameterCount
    """Of base and adapters."""

    def __str__(self) -> str:
        alike = len(set(self.experts)) == 1
        total = sum(self.experts)
        experts = f"{len(self.experts)} x {self.experts[0]}" if alike else f"{total}"
        parts = [f"{experts} experts" + ("" if alike else f" in {len(self.experts)} layers")]
        parts = parts if self.experts else ["0 experts"]
        parts += [f"{number} matrices of {role}" for role, number in self.matrices]
        trained, whole = self.parameters.of_adapters, self.parameters.total
        return (
            f"adapters on {', '.join(parts)}, 0 routers: {trained:,} trained "
            f"({100 * trained / max(whole, 1):.1f} %)"
        )


def count_adapters(chunks: list[Any]) -> AdapterCount:
    """Count them over all ranks; every rank must call it.

    Args:
        chunks: Megatron's model chunks of this rank, not wrapped.
    """
    mine = [
        f"{it.role} {it.layer} {-1 if it.expert is None else it.expert} {it.name}"
        for it in (update.matrix.place for update in updates_of(chunks))
    ]
    places = {line for text in world.gather_texts("\n".join(mine)) for line in text.splitlines()}
    split = [line.split(" ", 3) for line in places]
    pairs = {(int(layer), int(expert)) for role, layer, expert, _ in split if role == "experts"}
    experts = Counter(layer for layer, _ in pairs)
    others = Counter(role for role, *_ in split if role != "experts")
    return AdapterCount(
        experts=tuple(experts[layer] for layer in sorted(experts)),
        matrices=tuple((role, others[role]) for role in ROLES if role in others),
        parameters=count_parameters(chunks),
    )
