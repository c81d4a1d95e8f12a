"""Conformance of routers in the engines: does a tiny model train alike however it is run?

It is trained in Megatron in several ways (`ways.py`), which must give the same losses, parameters
and counts, and `MoEModel` must compute the same function. `conformance.py` asks for it, and says
what a router is.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from moe_megatron.routing import expert_capacity
from moe_megatron.routing.description import Router
from moe_megatron.testing.distributed import run_distributed
from moe_megatron.testing.router_ranks import Known, on_this_rank
from moe_megatron.testing.ways import (
    BATCH,
    ONE,
    SEQUENCE,
    SHAPE,
    STEPS,
    WAYS,
    Case,
    Found,
    Trained,
)


def train(cases: Mapping[str, Case], names: Sequence[str]) -> dict[str, Found]:
    """Train routers in some ways; what needs equally many ranks shares processes.

    Args:
        cases: The routers, by a name of the caller's.
        names: Of `WAYS`.

    Raises:
        ConfigError: Another process cannot know a router.
        RankError: A run fails; the message holds its output.
    """
    given = {key: (Known.of(case.router), case.overrides) for key, case in cases.items()}
    found: dict[str, Found] = {key: {} for key in cases}
    with tempfile.TemporaryDirectory(prefix="routers") as place:
        for ranks in sorted({WAYS[name].ranks for name in names}):
            own = [name for name in names if WAYS[name].ranks == ranks]
            results = run_distributed(
                on_this_rank, given, Path(place), own, world_size=ranks, timeout=1200
            )
            for key, ways in results[0].items():
                found[key] |= ways
    return found


def problems(case: Case, found: Found) -> Iterator[str]:
    """Sentences about what is wrong; none for a router that is the same everywhere.

    Args:
        case: The router.
        found: What came of it, in the ways of `ways_for`.
    """
    for name, trained in found.items():
        yield from _wrong_counts(name, trained, case)
    for name, trained in found.items():
        if (like := WAYS[name].like) is not None:
            yield from _differences(name, trained, like, found[like], case.router)
    if not found[ONE].apart < 1e-3:
        yield (
            "MoEModel and Megatron compute other logits from the same weights: they differ by "
            f"{found[ONE].apart:.2g} of their standard deviation; {_WHY}"
        )
    if (padding := found[ONE].padding) is not None:
        yield padding


def _wrong_counts(name: str, it: Trained, case: Case) -> Iterator[str]:
    where, top_k = f"under '{name}'", case.top_k
    if set(it.tokens) != {BATCH * SEQUENCE}:
        yield f"{where} a step counts {it.tokens[0]} tokens, not {BATCH * SEQUENCE}"
    total = int(it.assigned.sum())
    if case.router.fixed_number and total != it.assigned.size * BATCH * SEQUENCE * top_k:
        yield f"{where} {total} experts were counted, which is not tokens x top_k ({top_k})"
    if it.chosen is not None and total != it.chosen:
        yield f"{where} {total} experts were counted, but the router returned {it.chosen}"
    if name == "capacity":
        micro = SHAPE["training.micro_batch_size"] * SEQUENCE
        experts = it.counts.shape[-1]
        most = BATCH * SEQUENCE // micro * expert_capacity(micro, top_k, experts, 1.0)
        if int(it.counts.max()) > most:
            yield f"an expert computed {int(it.counts.max())} tokens, and has room for {most}"


def _differences(
    name: str, it: Trained, like: str, other: Trained, router: Router
) -> Iterator[str]:
    way = WAYS[name]
    of_batch = router.looks_at_batch(training=True) or router.loss_of_batch
    if of_batch and not way.same_batches:
        return  # other tokens are in a micro-batch, which it declares to matter
    if router.random and not way.same_chance:
        if abs(it.losses[0] / other.losses[0] - 1) > 0.02:
            yield _other_loss(name, it, like, other, step=1)
        return
    for step, (one, two) in enumerate(zip(it.losses, other.losses, strict=True), start=1):
        if not abs(one - two) <= 2e-5 * abs(two):
            yield _other_loss(name, it, like, other, step=step)
            return
    moved = int(np.abs(it.counts - other.counts).sum())
    if moved > 0.01 * other.counts.sum():
        yield f"under '{name}' {moved} tokens went to other experts than in {like}; {_WHY}"
        return
    for key, theirs in other.weights.items():
        apart = float((it.weights[key] - theirs).norm() / (theirs.norm() + 1e-12))
        if not apart < 1e-3:
            yield (
                f"under '{name}' the parameters '{key}' after {STEPS} steps are others than in "
                f"{like}, by {apart:.2g} of their norm; {_WHY}"
            )
            return


def _other_loss(name: str, it: Trained, like: str, other: Trained, *, step: int) -> str:
    return (
        f"under '{name}' the loss of step {step} is {it.losses[step - 1]:.6f}, and "
        f"{other.losses[step - 1]:.6f} in {like}; {_WHY}"
    )


_WHY = (
    "a router must depend on nothing but its arguments, not on the process, on earlier calls or "
    "on how many tokens there are, and its loss and its sums must be means and sums over tokens"
)
