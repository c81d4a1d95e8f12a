"""Keeps fewer experts than a model has: the most used ones, alone or with the others merged in.

A routing profile says how much each expert is used. Each layer keeps its own set of experts, and
its router keeps the rows of that set. With groups of experts (DeepSeek), each group keeps the same
number. Layers for multi-token prediction, which no profile counts, are left out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from moe_megatron.checkpoint.edit.selection import (
    Model,
    config_without_prediction,
    of_experts,
    with_experts,
    without_prediction,
)
from moe_megatron.checkpoint.formats.hf_folder import HfFolder
from moe_megatron.checkpoint.matrices import read_matrix
from moe_megatron.checkpoint.routers import ROUTER, routers_of_folder
from moe_megatron.errors import CheckpointError
from moe_megatron.families.links import Link, Term
from moe_megatron.files import user_path
from moe_megatron.telemetry.values.profile import PROFILE_FILE, RoutingProfile
from moe_megatron.telemetry.values.router_digest import Routers, check_same_routers

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class FewerExperts:
    """How many experts each MoE layer keeps, and the profile that says how much they are used."""

    num_experts: int
    """Number of experts to keep in each MoE layer."""
    profile: RoutingProfile | Path | str | None = None
    """The routing profile or its file; None uses `routing_profile.json` beside the weights."""


class KeepMostUsed(FewerExperts):
    """Keep the experts with the most tokens and drop the others."""

    __slots__ = ()


class MergeLeastUsed(FewerExperts):
    """W = sum over a cluster's members m of tokens_m / tokens_cluster * W_m, one per kept expert.

    This follows M-SMoE (Li et al., "Merge, Then Compress", arXiv:2310.01334): the most used experts
    lead the clusters, and each other expert joins the leader to which tokens are routed most
    similarly. Two things differ: similarity is the cosine of the router's rows, because there is no
    text to route here, and the inner features of the members are not permuted to match before they
    are averaged.
    """

    __slots__ = ()


def with_fewer_experts(model: Model, wanted: FewerExperts, folder: HfFolder) -> Model:
    """Keep the most used experts, alone or with the others merged in.

    Args:
        model: The whole model.
        wanted: How many experts to keep, and the profile.
        folder: The folder with the routers, which merging reads.

    Raises:
        CheckpointError: The number or the profile does not fit the model.
        ConfigError: The profile was counted on other weights.
        DataError: The profile's file cannot be read.
    """
    geometry = model.geometry
    expert_groups = _num_expert_groups(model)
    _check(model, wanted.num_experts, expert_groups)
    used = _uses(model, wanted, folder)
    config = config_without_prediction(model.config, model.family)
    config = with_experts(config, wanted.num_experts, model.family)
    links = without_prediction(model.links, geometry)
    kept = {
        layer: most_used(counts, wanted.num_experts, expert_groups)
        for layer, counts in used.items()
    }
    if isinstance(wanted, MergeLeastUsed):
        links = _merged(links, used, kept, expert_groups, folder)
    taken = [
        new
        for link in links
        for new in (
            [link] if link.layer not in kept else of_experts(link, kept[link.layer], geometry)
        )
    ]
    return model.changed(config, taken)


def _num_expert_groups(model: Model) -> int:
    field = next((f for f in model.family.fields if f.ours == "moe.router.expert_groups"), None)
    return max(1, int(field.value(model.config))) if field else 1


def _check(model: Model, wanted: int, expert_groups: int) -> None:
    geometry = model.geometry
    if not geometry.experts:
        raise CheckpointError(f"a {model.family.name} model has no experts to keep or merge.")
    if geometry.encoder_moe_layers:
        raise CheckpointError(
            f"{model.family.name} models are converted whole; their experts cannot be reduced."
        )
    if not geometry.top_k <= wanted <= geometry.experts or wanted % expert_groups:
        multiple = f", in multiples of its {expert_groups} groups" if expert_groups > 1 else ""
        raise CheckpointError(
            f"cannot keep {wanted} experts: this model has {geometry.experts} and sends a token to "
            f"{geometry.top_k}. Keep {geometry.top_k} to {geometry.experts}{multiple}."
        )


def _uses(model: Model, wanted: FewerExperts, folder: HfFolder) -> dict[int, list[int]]:
    """Number of tokens of each expert, by layer, counted from 0."""
    geometry = model.geometry
    layers = tuple(n for n, moe in enumerate(geometry.moe_layers, start=1) if moe)
    # Layers for multi-token prediction follow; they are left out of the new model.
    counts = uses(
        wanted.profile,
        folder.path,
        layers,
        geometry.experts,
        last=geometry.layers,
        prediction=geometry.architecture.model.num_prediction_layers,
        routers=lambda: routers_of_folder(folder),
    )
    return {layer - 1: of_layer for layer, of_layer in counts.items()}


def uses(
    profile: RoutingProfile | Path | str | None,
    folder: Path,
    layers: tuple[int, ...],
    experts: int,
    *,
    last: int,
    prediction: int,
    routers: Callable[[], Routers],
    top_k: int | None = None,
) -> dict[int, list[int]]:
    """Number of tokens of each expert, by layer, from 1.

    Args:
        profile: A routing profile or its file; None: `routing_profile.json` of the folder.
        folder: The folder of the weights.
        layers: The layers with experts.
        experts: Their number in each.
        last: The last layer that counts.
        prediction: Layers for multi-token prediction; a profile may have them after the last.
        routers: Gives the digests of the model's routers.
        top_k: Experts of a token; None: whatever the profile says.

    Raises:
        CheckpointError: There is no profile, or it is of a model of another shape, or empty.
        ConfigError: It was counted on other weights.
        DataError: Its file cannot be read.
    """
    where = "the routing profile"
    if not isinstance(profile, RoutingProfile):
        path = folder / PROFILE_FILE if profile is None else user_path(profile)
        if profile is None and not path.is_file():
            raise CheckpointError(
                f"{folder} has no {PROFILE_FILE}, so the use of its experts is unknown; give a "
                "routing profile (training saves one beside each checkpoint)."
            )
        profile, where = RoutingProfile.load(path), str(path)
    own = tuple(n for n in profile.layers if n <= last)
    further = len(profile.layers) - len(own)
    if own != layers or profile.num_experts != experts or further > prediction:
        raise CheckpointError(
            f"{where} is of layers {list(profile.layers)} with {profile.num_experts} experts, but "
            f"the model has layers {list(layers)} with {experts}; give the profile of this model."
        )
    if top_k not in (None, profile.top_k):
        raise CheckpointError(
            f"{where} is of a model that sends a token to {profile.top_k} experts, and this one "
            f"sends it to {top_k}; give the profile of this model."
        )
    if not profile.tokens:
        raise CheckpointError(f"{where} has counted no tokens; give one from a run that trained.")
    check_same_routers(profile.routers, routers, where, folder)
    counts = profile.tokens_per_expert.tolist()
    return {layer: counts[row] for row, layer in enumerate(layers)}


def most_used(counts: Sequence[int], wanted: int, expert_groups: int) -> tuple[int, ...]:
    """The numbers of the most used experts of each expert group; of equal ones, the first wins."""
    size = len(counts) // expert_groups
    found: list[int] = []
    for first in range(0, len(counts), size):
        ranked = sorted(range(first, first + size), key=lambda expert: -counts[expert])
        found += sorted(ranked[: wanted // expert_groups])
    return tuple(found)


def _merged(
    links: list[Link],
    used: Mapping[int, Sequence[int]],
    kept: Mapping[int, Sequence[int]],
    expert_groups: int,
    folder: HfFolder,
) -> list[Link]:
    """All links, with those of kept experts turned into weighted sums over their clusters."""
    members: dict[int | None, dict[int | None, list[int]]] = {}
    for link in links:
        if link.layer is not None and link.key.endswith(ROUTER):
            rows = read_matrix(link, folder)
            members[link.layer] = clusters(rows, kept[link.layer], expert_groups)
    by_identity = {link.identity: link for link in links}
    found = []
    for link in links:
        joined = members.get(link.layer, {}).get(link.expert, [])
        if len(joined) > 1 and link.layer is not None:
            counts = [used[link.layer][expert] for expert in joined]
            terms = tuple(
                Term(weight=share, blocks=by_identity[link.key, link.layer, expert].blocks)
                for expert, share in zip(joined, shares(counts), strict=True)
            )
            link = replace(link, terms=terms)
        found.append(link)
    return found


def shares(counts: Sequence[int]) -> list[float]:
    """What each member of a cluster contributes, by its tokens; equal shares without any."""
    total = sum(counts)
    return [count / total if total else 1 / len(counts) for count in counts]


def clusters(
    router: "Tensor", kept: Sequence[int], expert_groups: int
) -> dict[int | None, list[int]]:
    """The experts merged into each kept expert, itself first.

    Args:
        router: The rows of the router, [experts, hidden].
        kept: The experts that stay.
        expert_groups: Number of groups; an expert joins one of its own.
    """
    import torch

    rows = torch.nn.functional.normalize(router.float(), dim=1)
    experts = len(rows)
    found: dict[int | None, list[int]] = {expert: [expert] for expert in kept}
    for expert in range(experts):
        if expert in found:
            continue
        near = [
            k for k in kept if k * expert_groups // experts == expert * expert_groups // experts
        ]
        similarities = rows[near] @ rows[expert]
        found[near[int(similarities.argmax())]].append(expert)
    return found
