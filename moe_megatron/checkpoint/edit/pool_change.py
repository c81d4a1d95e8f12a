"""Changes to the experts of a model that is being trained: more of them, or fewer.

A change says, for each MoE layer, what every expert of the new model is made of: one expert of the
old model, or shares of several. It reads the routing profile and the rows of routers, and neither
writes nor knows where tensors are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_megatron.checkpoint.edit.fewer_experts import (
    FewerExperts,
    MergeLeastUsed,
    clusters,
    most_used,
    shares,
    uses,
)
from moe_megatron.config import Architecture, MoEConfig, RouterConfig
from moe_megatron.errors import CheckpointError, ConfigError
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.telemetry.values.router_digest import router_digests

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """What an expert of the new model is made of.

    Its weights are the sum of `share * weights` over its members, plus `sign` times noise. Its row
    of the router, and what else the router keeps of it, is that of the first member.
    """

    members: tuple[tuple[int, float], ...]
    """Experts of the old model, the leader first, and their shares, which sum to 1."""
    copies: int = 1
    """How many experts of the new model share the tokens of this one's only member."""
    sign: float = 0.0
    """Of the noise: two copies get the same with opposite signs, so that their mean stays."""
    pair: int = 0
    """Which of the pairs of copies it is in; each has noise of its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grow:
    """Split experts until each MoE layer has so many.

    A multiple of the old number splits every expert alike. With `top_k` multiplied by as much, a
    token visits all copies of the experts that it visited, each with its share of the weight: the
    model computes what it did. Any other number splits the most used experts of each layer.

    Raises:
        CheckpointError: A number is out of range.
    """

    num_experts: int
    """Number of experts of each MoE layer afterwards."""
    top_k: int | None = None
    """Experts of a token afterwards; None: multiplied as the experts are, if it is a multiple."""
    noise: float = 0.0
    """Standard deviation of what is added to one copy's matrices and taken from the other's."""
    seed: int = 0
    """Seed of the noise."""
    profile: RoutingProfile | Path | str | None = None
    """Says which experts are the most used; None: the profile beside the checkpoint."""

    def __post_init__(self) -> None:
        if not 0 <= self.noise < 1 or not 0 <= self.seed < 2**63:
            raise CheckpointError(
                f"the noise ({self.noise}) must be a standard deviation of at least 0 and below 1, "
                f"and the seed ({self.seed}) at least 0 and below 2^63."
            )


Change = Grow | FewerExperts
Layers = Mapping[int, tuple[Made, ...]]
"""By the number of a MoE layer, from 1: its experts after the change."""


def changed_experts(
    architecture: Architecture,
    change: Change,
    folder: Path,
    weight: Callable[[int], "Tensor"],
) -> tuple[MoEConfig, Layers]:
    """What the experts are after a change.

    Args:
        architecture: The model, with all options of its router.
        change: The change.
        folder: The checkpoint, for its routing profile.
        weight: Gives the weight of the router of a layer, with the rows of experts first.

    Returns:
        The configuration of the new experts, and what each of them is made of.

    Raises:
        CheckpointError: The change or the profile does not fit the model.
        DataError: The profile cannot be read.
    """
    moe, layers = architecture.moe, architecture.routed_layers
    experts = moe.num_experts
    if experts is None:
        raise CheckpointError("this is a dense model, which has no experts to change.")
    groups = next((int(n) for it in _GROUPS if (n := moe.router.option(it))), 1)
    wanted = change.num_experts
    router = _router(moe, experts, change)
    if wanted % groups and router == moe.router:
        raise CheckpointError(
            f"{wanted} experts cannot be divided into the {groups} groups of the router "
            f"'{moe.router.name}'; choose a multiple of {groups}."
        )

    def used() -> dict[int, list[int]]:
        return uses(
            change.profile,
            folder,
            layers,
            experts,
            last=max(layers),
            prediction=0,
            routers=lambda: router_digests((n, weight(n)) for n in layers),
        )

    if isinstance(change, Grow):
        top_k = _top_k(moe, experts, change)
        if wanted % experts == 0:
            whole = tuple(
                it for expert in range(experts) for it in _copies(expert, wanted // experts)
            )
            found: Layers = dict.fromkeys(layers, whole)
        else:
            found = {n: _split(counts, wanted, groups) for n, counts in used().items()}
        return _fitting(moe, num_experts=wanted, top_k=top_k, router=router), found
    if not moe.top_k <= wanted < experts:
        raise CheckpointError(
            f"cannot keep {wanted} experts: this model has {experts} and sends a token to "
            f"{moe.top_k}. Keep {moe.top_k} to {experts - 1}."
        )
    fewer = _fitting(moe, num_experts=wanted)
    found = {
        layer: _kept(counts, change, groups, lambda n=layer: weight(n)[:experts])  # type: ignore[misc]
        for layer, counts in used().items()
    }
    return fewer, found


def what_is_kept(before: MoEConfig, after: MoEConfig, change: Change) -> str:
    """A sentence that says how far the new model computes what the old one did."""
    if isinstance(change, MergeLeastUsed):
        return "merged experts are averages: the model computes something else, and trains on."
    if isinstance(change, FewerExperts):
        return (
            "tokens that went to removed experts go elsewhere; for all others nothing changes, "
            "except that a softmax over all experts (pre_softmax) gives the rest more weight."
        )
    times, rest = divmod(change.num_experts, before.num_experts or 1)
    if rest or after.top_k != times * before.top_k:
        return (
            f"each token visits {after.top_k} experts, and copies of one may be among them in "
            "place of others: the loss may jump, and recovers in training. To keep the function, "
            f"grow to a multiple of {before.num_experts} and multiply top_k alike."
        )
    if _shares_weight(before):
        return (
            f"each token visits all {times} copies of its experts, each with 1/{times} of the "
            "weight: the model computes what it did, but for noise and rounding."
        )
    return (
        f"the router '{before.router.name}' with these options need not share the weight of an "
        "expert among its copies: the loss may jump."
    )


def _shares_weight(moe: MoEConfig) -> bool:
    """Whether m copies of every expert, of which tokens visit m times as many, get 1/m each."""
    router = moe.router
    if router.name != "top_k":
        return router.name in _SHARING
    sigmoid = router.option("score_function", "softmax") != "softmax"
    return not sigmoid or moe.top_k > 1  # one expert's score is not divided by a sum


_SHARING = frozenset(
    {"cosine", "query_key", "biased_softmax", "grouped", "hierarchical", "specialised"}
)
"""Routers beside top_k whose weights are a softmax, or sum to 1, over equal rows."""


_GROUPS = ("expert_groups", "groups", "domains")
"""Options of routers that say into how many groups experts are divided, side by side."""


def _router(moe: MoEConfig, experts: int, change: Change) -> RouterConfig:
    """The router afterwards; experts that lie behind all groups grow with the others, or stay."""
    shared, times = int(moe.router.option("shared") or 0), change.num_experts // experts
    if moe.router.name != "specialised" or not shared:
        return moe.router
    if change.num_experts % experts or not isinstance(change, Grow):
        raise CheckpointError(
            f"the last {shared} of the {moe.num_experts} experts are shared by all domains "
            "(moe.router.shared), and which of them a change is about cannot be said; grow to a "
            f"multiple of {moe.num_experts}."
        )
    return replace(moe.router, options={**moe.router.options, "shared": times * shared})


def _fitting(moe: MoEConfig, **changes: Any) -> MoEConfig:
    """The changed configuration, which its router must be able to work with.

    Raises:
        CheckpointError: It is not.
    """
    from moe_megatron.routing import resolve  # imports torch, which is slow

    try:
        return resolve(replace(moe, **changes))
    except ConfigError as error:
        top_k = changes.get("top_k", moe.top_k)
        raise CheckpointError(
            f"a model with {changes['num_experts']} experts, {top_k} of them for a token, could "
            f"not be trained: {error} Choose another number of experts, or of them for a token."
        ) from None


def _top_k(moe: MoEConfig, experts: int, change: Grow) -> int:
    wanted = change.num_experts
    if wanted <= experts:
        raise CheckpointError(
            f"{wanted} experts are not more than the {experts} that the model has; give a larger "
            "number, or keep or merge experts."
        )
    times, rest = divmod(wanted, experts)
    top_k = change.top_k
    if top_k is None:
        top_k = moe.top_k if rest else times * moe.top_k
    if not 1 <= top_k <= wanted:
        raise CheckpointError(f"top_k ({top_k}) must be from 1 to the {wanted} experts.")
    return top_k


def _copies(expert: int, times: int) -> tuple[Made, ...]:
    """So many copies of an expert, in pairs whose noise cancels out; the odd one has none."""
    return tuple(
        Made(
            members=((expert, 1.0),),
            copies=times,
            sign=0.0 if copy == times - 1 and times % 2 else 1.0 - 2.0 * (copy % 2),
            pair=copy // 2,
        )
        for copy in range(times)
    )


def _split(counts: Sequence[int], wanted: int, groups: int) -> tuple[Made, ...]:
    """Copies beside the experts, as many as are missing, of the most used ones first."""
    experts, size = len(counts), len(counts) // groups
    times = dict.fromkeys(range(experts), 1)
    for first in range(0, experts, size):
        group = range(first, first + size)
        for _ in range(wanted // groups - size):
            times[max(group, key=lambda it: counts[it] / times[it])] += 1
    return tuple(it for expert in range(experts) for it in _copies(expert, times[expert]))


def _kept(
    counts: Sequence[int], change: FewerExperts, groups: int, rows: Callable[[], "Tensor"]
) -> tuple[Made, ...]:
    kept = most_used(counts, change.num_experts, groups)
    members: Mapping[int | None, list[int]] = {expert: [expert] for expert in kept}
    if isinstance(change, MergeLeastUsed):
        members = clusters(rows(), kept, groups)
    return tuple(
        Made(
            members=tuple(
                zip(members[expert], shares([counts[it] for it in members[expert]]), strict=True)
            )
        )
        for expert in kept
    )
