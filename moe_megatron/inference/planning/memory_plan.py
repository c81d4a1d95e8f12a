"""How a model fits into a memory: its sizes, this machine's speeds, and what its routing is."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from moe_megatron.checkpoint.routers import routers_of
from moe_megatron.config.arguments import real, whole
from moe_megatron.errors import ConfigError
from moe_megatron.inference.cache.advice import best_policy
from moe_megatron.inference.cache.policies import Counts
from moe_megatron.inference.cache.simulator import most_used, simulate
from moe_megatron.inference.cache.trace import Trace
from moe_megatron.inference.exported import model_folder
from moe_megatron.inference.planning.plans import Experts, HitRate, Plan, plans
from moe_megatron.inference.planning.sizes import Sizes, sizes_of
from moe_megatron.inference.planning.speeds import Speeds, measured, packed_bytes
from moe_megatron.inference.quantization.precision import BITS, GROUP_SIZES, Precision, check_shape
from moe_megatron.inference.store.expert_store import ExpertStore
from moe_megatron.inference.store.hugging_face import HuggingFaceStore
from moe_megatron.inference.store.opening import open_store
from moe_megatron.inference.store.packed import PackedStore
from moe_megatron.inference.usage import counts_of
from moe_megatron.telemetry.values.profile import PROFILE_FILE, RoutingProfile

Source = Literal["trace", "profile", "chance"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Plans for a model, and what they rest on."""

    model: Path
    memory: int
    """Bytes there are."""
    program: int
    """Bytes of this process before a model is loaded: the interpreter, torch, transformers."""
    context: int
    """Tokens whose keys and values are kept."""
    sizes: Sizes
    speeds: Speeds
    hits_from: Source
    """Whence hit rates come: a trace replayed; a routing profile, whose most used experts stay; or
    chance, by which every expert is needed as often."""
    plans: tuple[Plan, ...]


def plan_memory(
    source: str | Path,
    gigabytes: float,
    *,
    context: int = 2048,
    trace: Path | None = None,
    of_any_model: bool = False,
) -> MemoryPlan:
    """Say what of a model fits into a memory, and how fast it would decode here, a token at a time.

    Args:
        source: A Hugging Face folder, a hub id, or a Megatron checkpoint, which is exported into
            the cache once.
        gigabytes: The memory, in 10^9 bytes.
        context: Tokens whose keys and values are kept.
        trace: What the model has needed before (`moe-megatron cache record`); without one the
            routing profile of the folder says how often experts are in memory.
        of_any_model: Whether either may have been counted on other weights.

    Raises:
        CheckpointError: The model is incomplete, or its experts cannot be read one by one.
        ConfigError: A number is none, or the trace is of another model.
        DataError: The trace cannot be read.
        MappingError: There is no table for its family.
    """
    memory = int(1e9 * real("memory", gigabytes, example=16.0, above=True))
    tokens = whole("context", context, least=0)
    path = model_folder(source)
    store = open_store(path)
    try:
        sizes = sizes_of(path, store)
        hits_from, hit_rate = hit_rates(path, store, sizes, trace, of_any_model=of_any_model)
        import transformers  # noqa: F401  # a part of the program

        program = psutil.Process(os.getpid()).memory_info().rss
        kinds = _kinds(store, sizes)
        speeds = measured(store, sizes, [it.precision for it in kinds if it.precision is not None])
    finally:
        store.close()
    return MemoryPlan(
        model=path,
        memory=memory,
        program=program,
        context=tokens,
        sizes=sizes,
        speeds=speeds,
        hits_from=hits_from,
        plans=tuple(plans(memory, program, tokens, sizes, speeds, kinds, hit_rate)),
    )


def _kinds(store: ExpertStore, sizes: Sizes) -> list[Experts]:
    """Experts as they are, and as `moe-megatron quantize` could write them."""
    as_they_are = Experts(
        name="as packed" if isinstance(store, PackedStore) else store.dtype.lower(),
        precision=None,
        nbytes=sizes.expert,
        file=sizes.file,
    )
    if not isinstance(store, HuggingFaceStore):
        return [as_they_are]
    found = [as_they_are]
    item = store.nbytes // sum(rows * columns for rows, columns in store.shapes)
    for bits in sorted(BITS, reverse=True):
        groups = GROUP_SIZES if bits == 4 else (None,)
        for precision in (Precision(bits, it) for it in groups):
            if all(_fits(it, precision) for it in store.shapes):
                nbytes = sum(packed_bytes(it, precision, item) for it in store.shapes)
                found.append(
                    Experts(name=str(precision), precision=precision, nbytes=nbytes, file=nbytes)
                )
                break
    return found


def _fits(shape: tuple[int, int], precision: Precision) -> bool:
    try:
        check_shape(shape, precision)
    except ConfigError:
        return False
    return True


def hit_rates(
    path: Path,
    store: ExpertStore,
    sizes: Sizes,
    trace: Path | None,
    *,
    of_any_model: bool = False,
) -> tuple[Source, HitRate]:
    """The best that is known of how often an expert is in memory, and whence.

    Raises:
        ConfigError: The trace or the profile is of another model.
        DataError: It cannot be read.
    """
    if trace is not None:
        known = Trace.load(trace)
        known = known.of_any_model() if of_any_model else known
        known.about.check_model(
            sizes.moe_layers, sizes.experts, sizes.top_k, lambda: routers_of(path), path
        )
        return "trace", lambda slots: _replayed(known, slots)
    counts: Counts = {}
    if (beside := path / PROFILE_FILE).is_file():
        meant = RoutingProfile.load(beside).of_any_model() if of_any_model else beside
        counts = counts_of(meant, store)
    if any(counts.values()):
        return "profile", lambda slots: _of_most_used(counts, slots)
    return "chance", lambda slots: slots / sizes.every


def _replayed(trace: Trace, slots: int) -> float:
    """The hit rate of the best policy on the second half of a trace, the first being known."""
    first, second = trace.halves()
    policy = best_policy(trace, slots)
    return simulate(second, slots, policy, first.counts()).hit_rate


def _of_most_used(counts: Counts, slots: int) -> float:
    """The share of all uses that the most used experts have."""
    return sum(counts[it] for it in most_used(counts)[:slots]) / sum(counts.values())
