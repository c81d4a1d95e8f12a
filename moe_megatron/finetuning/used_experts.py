"""Which experts a task uses: the fewest of each layer that get most of its tokens.

ESFT (arXiv:2407.01906) trains these alone. A routing profile of the task says how often each was
chosen. It does not know how they are trained.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moe_megatron.config.selector import Selector
from moe_megatron.errors import ConfigError
from moe_megatron.telemetry.values.profile import RoutingProfile


@dataclass(frozen=True, kw_only=True, slots=True)
class UsedExperts:
    """The chosen experts of one layer."""

    layer: int
    """Number of the layer, from 1."""
    experts: tuple[int, ...]
    """Their numbers, from 0, most used first."""
    share: float
    """Their part of the layer's assignments of tokens to experts."""
    num_experts: int
    """Experts of the layer."""

    @property
    def selector(self) -> str:
        """As `finetune.train` names them."""
        return str(Selector("experts", (self.layer,), tuple(sorted(self.experts))))

    def __str__(self) -> str:
        numbers = ", ".join(map(str, self.experts))
        return (
            f"layer {self.layer}: {len(self.experts)} of {self.num_experts} experts had "
            f"{100 * self.share:.1f} % of the task: {numbers}"
        )


def used_experts(profile: RoutingProfile, share: float) -> tuple[UsedExperts, ...]:
    """The fewest experts of each layer with at least this share of its assignments.

        r_le = n_le / sum_e n_le,    sum of the largest r_le >= share

    n_le counts how often layer l sent a token to expert e. Equal ones are taken by their numbers.

    Args:
        profile: Routing of the task's data by the model to be trained.
        share: Share p to reach, above 0 and up to 1; ESFT uses 0.2 with counts of tokens.

    Raises:
        ConfigError: The share is out of range, or a layer had no tokens.
    """
    if not 0 < share <= 1:
        raise ConfigError(
            f"the share of a task's tokens ({share:g}) must be above 0 and at most 1; try 0.2."
        )
    return tuple(
        _used(layer, counts, share)
        for layer, counts in zip(profile.layers, profile.tokens_per_expert, strict=True)
    )


def _used(layer: int, counts_E: np.ndarray, share: float) -> UsedExperts:
    total = int(counts_E.sum())
    if not total:
        raise ConfigError(
            f"the routing profile has no tokens in layer {layer}, so it does not say which experts "
            "the task uses; record one over the task's data."
        )
    order = np.argsort(-counts_E, kind="stable")
    reached = np.cumsum(counts_E[order])
    # Integers: 0.3 * 10 would be a little more than 3.
    number = int(np.argmax(reached >= share * total - 1e-9 * total)) + 1
    return UsedExperts(
        layer=layer,
        experts=tuple(order[:number].tolist()),
        share=float(reached[number - 1]) / total,
        num_experts=len(counts_E),
    )


def train_used(train: Sequence[str], chosen: Sequence[UsedExperts]) -> list[str]:
    """Selectors with the chosen experts in place of all routed ones.

    Args:
        train: Selectors; those of all routed experts are left out, and so is "all", which is what
            nobody has chosen.
        chosen: The experts of each layer.
    """
    others = [text for text in train if text not in ("all", "experts")]
    return [*others, *(it.selector for it in chosen)]
