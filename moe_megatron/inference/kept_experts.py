"""Which experts of a model are loaded, where not all are: by their use, or by a function.

A choice is by layer, from 0: the numbers of its experts, rising. It is made from counts alone, and
knows neither weights nor what becomes of the others.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moe_megatron.checkpoint.edit.fewer_experts import most_used, uses
from moe_megatron.checkpoint.formats.hf_folder import HfFolder
from moe_megatron.checkpoint.routers import routers_of
from moe_megatron.config.arguments import whole
from moe_megatron.config.checks import join_words, nearest
from moe_megatron.errors import CheckpointError, ConfigError
from moe_megatron.families import family_of
from moe_megatron.telemetry.values.profile import PROFILE_FILE, RoutingProfile

ALL, FREQUENCY, BY_LAYER = "all", "frequency_based", "by_layer"
STRATEGIES = (ALL, FREQUENCY, BY_LAYER)

Counts = NDArray[np.int64]
"""Tokens of each expert, [L, E]."""
Kept = Mapping[int, tuple[int, ...]]
Strategy = str | Callable[[Counts], Sequence[Sequence[int]]]
"""A name, or a function from counts to the experts of each layer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Routed:
    """What a model's router can choose from."""

    path: Path
    layers: tuple[int, ...]
    """Layers with experts, from 1."""
    last: int
    """The last layer of the decoder."""
    prediction: int = 0
    """Layers for multi-token prediction, which a profile may know."""
    experts: int
    top_k: int
    groups: int
    """Equal groups of consecutive experts (DeepSeek-V3); 1: none."""
    chosen_groups: int
    """Groups that the experts of a token are in."""

    @classmethod
    def of(cls, path: Path) -> "Routed":
        """Of a Hugging Face folder.

        Raises:
            CheckpointError: It is incomplete or damaged, or is a model without experts.
            MappingError: There is no table for its family.
        """
        folder = HfFolder(path, quantized=True)  # the store refuses what it cannot read
        family = family_of(folder.config)
        geometry = family.geometry(folder.config, folder.tensors)
        if not geometry.experts:
            raise CheckpointError(f"{path} is a model without experts, so there are none to leave.")
        said = {field.ours: field.value(folder.config) for field in family.fields}
        return cls(
            path=path,
            layers=tuple(n for n, moe in enumerate(geometry.moe_layers, start=1) if moe),
            last=geometry.layers,
            prediction=geometry.architecture.model.num_prediction_layers,
            experts=geometry.experts,
            top_k=geometry.top_k,
            groups=int(said.get("moe.router.expert_groups") or 1),
            chosen_groups=int(said.get("moe.router.group_top_k") or 1),
        )

    @property
    def least(self) -> int:
        """The fewest experts of a layer with which a token still finds `top_k`."""
        if self.groups == 1:
            return self.top_k
        # A group is chosen by the sum of its two best scores.
        return self.groups * max(2, -(-self.top_k // self.chosen_groups))


def kept_experts(
    strategy: Strategy,
    number: int | None,
    routed: Routed,
    profile: RoutingProfile | str | Path | None,
) -> Kept | None:
    """The experts that a strategy keeps; None: all.

    Args:
        strategy: "all"; "frequency_based", the most used of each layer; "by_layer", as many in
            the mean over layers, more where more are used; or a function from the counts of the
            profile [L, E] (zeros without one) to the experts of each layer.
        number: How many experts of each layer.
        routed: The model.
        profile: Tokens of each expert, or the file; None: `routing_profile.json` of the model.

    Raises:
        CheckpointError: There is no profile where one is needed, or it is of another model.
        ConfigError: The strategy or the number does not fit the model.
        DataError: The profile cannot be read.
    """
    if callable(strategy):
        return _checked(strategy(_counts(routed, profile, needed=False)), routed)
    if strategy not in STRATEGIES:
        raise ConfigError(
            f"expert_selection_strategy ({strategy!r}) must be {join_words(STRATEGIES)}, or a "
            f"function from counts to experts.{nearest(strategy, STRATEGIES)}"
        )
    if strategy == ALL:
        if number is not None:
            raise ConfigError(
                f"num_experts_to_load ({number}) says how many experts are loaded, and "
                f"expert_selection_strategy={ALL!r} loads all; name another strategy, such as "
                f"{FREQUENCY!r}."
            )
        return None
    if number is None:
        raise ConfigError(
            f"expert_selection_strategy={strategy!r} needs num_experts_to_load: how many of the "
            f"{routed.experts} experts of each layer."
        )
    check_number(number, routed)
    counts = _counts(routed, profile, needed=True)
    if strategy == BY_LAYER:
        return _by_layer(counts, number, routed)
    return {
        layer - 1: most_used(of_layer, number, routed.groups)
        for layer, of_layer in zip(routed.layers, counts.tolist(), strict=True)
    }


def share_kept(counts: Counts, kept: Kept) -> float:
    """The part of all uses that falls on kept experts; nan without any use."""
    rows = zip(counts, kept.values(), strict=True)
    total = int(counts.sum())
    return sum(int(row[list(experts)].sum()) for row, experts in rows) / total if total else np.nan


def _by_layer(counts: Counts, number: int, routed: Routed) -> Kept:
    """The largest share of all uses that so many experts, of all layers together, can have.

    Every layer starts with the fewest that it needs. The others go, one of each group of experts
    at a time, to the layer in which they are used most: where a few experts have nearly all tokens,
    few are kept.
    """
    by_group = counts.reshape(len(counts), routed.groups, -1)
    gains = -np.sort(-by_group, axis=2).sum(axis=1)  # [L, E / groups], falling
    least = routed.least // routed.groups
    free = (number // routed.groups - least) * len(counts)
    wishes = sorted((-gain, rank, row) for row, rank, gain in _after(gains, least))
    sizes = [least] * len(counts)
    for _, _, row in wishes[:free]:
        sizes[row] += 1
    return {
        layer - 1: most_used(counts[row].tolist(), sizes[row] * routed.groups, routed.groups)
        for row, layer in enumerate(routed.layers)
    }


def _after(gains: NDArray[np.int64], least: int) -> Iterator[tuple[int, int, int]]:
    """Row, rank and gain of what a layer does not need."""
    for row, of_layer in enumerate(gains.tolist()):
        for rank, gain in enumerate(of_layer[least:], start=least):
            yield row, rank, gain


def _counts(routed: Routed, profile: RoutingProfile | str | Path | None, *, needed: bool) -> Counts:
    if not needed and profile is None and not (routed.path / PROFILE_FILE).is_file():
        return np.zeros((len(routed.layers), routed.experts), dtype=np.int64)
    found = uses(
        profile,
        routed.path,
        routed.layers,
        routed.experts,
        last=routed.last,
        prediction=routed.prediction,
        routers=lambda: routers_of(routed.path),
        top_k=routed.top_k,
    )
    return np.array([found[layer] for layer in routed.layers], dtype=np.int64)


def check_number(number: int, routed: Routed) -> None:
    """Refuse a number of experts of each layer that a model cannot have.

    Raises:
        ConfigError: It does not fit; the message has those that do.
    """
    whole("num_experts_to_load", number)
    if not routed.least <= number <= routed.experts or number % routed.groups:
        multiple = f", in multiples of its {routed.groups} groups" if routed.groups > 1 else ""
        raise ConfigError(
            f"num_experts_to_load ({number}) does not fit {routed.path}: it has {routed.experts} "
            f"experts and sends a token to {routed.top_k}; load {routed.least} to "
            f"{routed.experts}{multiple}."
        )


def _checked(answer: Sequence[Sequence[int]], routed: Routed) -> Kept:
    """What a function chose, in rising order."""
    if len(answer) != len(routed.layers):
        raise ConfigError(
            f"expert_selection_strategy gave the experts of {len(answer)} layers, and "
            f"{routed.path} has {len(routed.layers)} with experts; give a list for each."
        )
    kept = {}
    size = routed.experts // routed.groups
    for layer, given in zip(routed.layers, answer, strict=True):
        experts = tuple(sorted(int(it) for it in given))
        inside = not experts or 0 <= experts[0] <= experts[-1] < routed.experts
        if not inside or len(set(experts)) != len(experts) or len(experts) < routed.least:
            raise ConfigError(
                f"expert_selection_strategy gave the experts {list(experts)} for layer {layer}; "
                f"it needs {routed.least} or more different numbers from 0 to "
                f"{routed.experts - 1}."
            )
        if len({sum(it // size == group for it in experts) for group in range(routed.groups)}) > 1:
            raise ConfigError(
                f"expert_selection_strategy gave the experts {list(experts)} for layer {layer}, "
                f"whose router chooses between {routed.groups} groups of {size}; keep as many of "
                "each."
            )
        kept[layer - 1] = experts
    return kept
