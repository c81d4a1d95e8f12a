"""Which experts a task uses: the fewest of each layer that get most of its tokens.

ESFT (arXiv:2407.01906) trains these alone. A routing profile of the task says how often each was
chosen. It does not know how they are trained.
"""

import math
from collections.abc import Callable, Sequence
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

    def number(reached_E: np.ndarray) -> int:
        # Integers: 0.3 * 10 would be a little more than 3.
        total = reached_E[-1]
        return int(np.argmax(reached_E >= share * total - 1e-9 * total)) + 1

    return tuple(_used(*layer, number) for layer in counts_of_layers(profile))


def most_used_experts(profile: RoutingProfile, part: float) -> tuple[UsedExperts, ...]:
    """The same part of each layer's experts, those with the most tokens (arXiv:2603.24044).

    Args:
        profile: Routing of the task's data by the model to be trained.
        part: Of the experts, above 0 and up to 1, rounded up; MoE-Sieve uses 0.25.

    Raises:
        ConfigError: The part is out of range, or a layer had no tokens.
    """
    if not 0 < part <= 1:
        raise ConfigError(
            f"the part of each layer's experts ({part:g}) must be above 0 and at most 1; try 0.25."
        )
    return tuple(
        _used(*layer, lambda reached_E: math.ceil(part * len(reached_E) - 1e-9))
        for layer in counts_of_layers(profile)
    )


def counts_of_layers(profile: RoutingProfile) -> list[tuple[int, np.ndarray]]:
    """The number of each layer, and the tokens of each of its experts [experts].

    Raises:
        ConfigError: A layer had no tokens.
    """
    found = list(zip(profile.layers, profile.tokens_per_expert, strict=True))
    for layer, counts_E in found:
        if not counts_E.any():
            raise ConfigError(
                f"the routing profile has no tokens in layer {layer}, so it does not say which "
                "experts the task uses; record one over the task's data."
            )
    return found


def _used(layer: int, counts_E: np.ndarray, number: Callable[[np.ndarray], int]) -> UsedExperts:
    """The most used experts, as many as a function of the sorted counts' running sums says."""
    order = np.argsort(-counts_E, kind="stable")
    reached_E = np.cumsum(counts_E[order])
    most = number(reached_E)
    return UsedExperts(
        layer=layer,
        experts=tuple(order[:most].tolist()),
        share=float(reached_E[most - 1]) / int(reached_E[-1]),
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
