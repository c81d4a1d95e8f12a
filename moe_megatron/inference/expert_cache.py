"""`ExpertCache`: memory for some of a model's experts; the others are read when they are needed.

Slots are allocated once. Who is where is `cache/residency.py`'s, reading is the store's, computing
is the caller's; while a caller computes with what is there, threads read the rest.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch

from moe_megatron.checkpoint.routers import routers_of
from moe_megatron.config.arguments import explained, real, whole
from moe_megatron.errors import ConfigError
from moe_megatron.inference.cache.advice import best_policy
from moe_megatron.inference.cache.policies import Counts, Key, make_policy
from moe_megatron.inference.cache.prefetch import Prefetch, PrefetchStats
from moe_megatron.inference.cache.residency import Answer, Residency, Tally, least_slots
from moe_megatron.inference.cache.simulator import most_used
from moe_megatron.inference.cache.trace import Trace
from moe_megatron.inference.quantization.kernels import Matrix
from moe_megatron.inference.reading_ahead import ReadingAhead
from moe_megatron.inference.store.expert_store import ExpertStore
from moe_megatron.inference.transfer import CPU, Rows, rows_on

AUTO = "auto"
READERS = 2
"""Threads that read, and slots for what does not stay."""

Matrices = tuple[Matrix, Matrix]
"""First matrix [width, hidden] and second [hidden, ffn] of an expert."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheStats:
    """What a cache has done since it was made, or since `reset_stats`."""

    hits: int
    """Experts that were in memory when they were needed."""
    misses: int
    evictions: int
    bytes_read: int
    passes: int
    """Forward passes: times that the first layer asked."""
    load_seconds: float
    """Of reading, summed over threads."""
    slots: int
    """Experts that fit."""
    prefetch: PrefetchStats | None = None
    """Of reading ahead; None: it is off."""

    @property
    def hit_rate(self) -> float:
        """Hits / (hits + misses); nan where nothing was needed."""
        return Tally(hits=self.hits, misses=self.misses).hit_rate

    @property
    def avg_load_time_ms(self) -> float:
        """Milliseconds that an expert takes to be read; 0 where none was."""
        return 1e3 * self.load_seconds / self.misses if self.misses else 0.0

    @property
    def bytes_per_pass(self) -> float:
        """Bytes read for each forward pass; of one sequence, for each token."""
        return self.bytes_read / self.passes if self.passes else 0.0


@explained
class ExpertCache:
    """Memory for experts, given to a model by `OptimizedMoEModel.set_expert_cache`.

    Args:
        capacity_gb: Its size in 10^9 bytes.
        policy: "lru", "lfu", "weighted_lru", "static", one under `@register_policy`, or "auto": the
            one that is best on a trace.
        trace: What the model has needed before (`moe-megatron cache record`), for "auto".
        prefetch: Read what the next layer's router would choose now before that layer asks, while
            this one is computed; `Prefetch()` for the usual terms. It ends itself when it loses.
        preload_top_k: In each layer, how many of the experts that a routing profile has counted
            most are read at once.

    Raises:
        ConfigError: An argument is out of range.
        DataError: The trace cannot be read.
    """

    def __init__(
        self,
        capacity_gb: float,
        policy: str = "lru",
        preload_top_k: int | None = None,
        *,
        trace: Trace | str | Path | None = None,
        prefetch: Prefetch | None = None,
    ) -> None:
        self.capacity_gb = real("capacity_gb", capacity_gb, example=4.0, above=True)
        self.policy = policy
        self.preload_top_k = (
            None if preload_top_k is None else whole("preload_top_k", preload_top_k, least=0)
        )
        if policy != AUTO:
            make_policy(policy, {})
        elif trace is None:
            raise ConfigError(
                f"policy={AUTO!r} takes what was best on a trace of the model; record one with "
                "`moe-megatron cache record`, and give it as trace=."
            )
        self._trace = (
            trace if trace is None or isinstance(trace, Trace) else Trace.load(Path(trace))
        )
        if not isinstance(prefetch, Prefetch | None):
            raise ConfigError(
                f"prefetch ({prefetch!r:.60}) must be Prefetch() of moe_megatron.caching, or None."
            )
        self.prefetch = prefetch
        self._memory: _Slots | None = None

    def open(
        self,
        store: ExpertStore,
        *,
        layers: Sequence[int],
        top_k: int,
        counts: Counts,
        device: torch.device = CPU,
    ) -> None:
        """Allocate the slots for a model's experts, and read the first ones.

        Args:
            store: Where experts are read.
            layers: Layers with experts.
            top_k: Experts of a token.
            counts: Uses of experts that a routing profile knows; may be empty.
            device: Where they are computed.

        Raises:
            CheckpointError: An expert cannot be read.
            ConfigError: The capacity is too small; the message has the smallest.
        """
        slots = min(int(self.capacity_gb * 1e9 // store.nbytes), len(store.keys))
        least = least_slots(len(layers), top_k)
        if slots < least:
            raise ConfigError(
                f"capacity_gb ({self.capacity_gb:g}) has room for {slots} experts of "
                f"{store.nbytes / 1e6:.3g} MB, and a token needs {top_k} in each of {len(layers)} "
                f"layers; give {least * store.nbytes / 1e9:.4g} or more."
            )
        if self.preload_top_k and not counts:
            raise ConfigError(
                f"preload_top_k ({self.preload_top_k}) needs to know which experts are used most; "
                "give the model a routing profile."
            )
        name = self.policy if self.policy != AUTO else self._best(store, top_k, slots, counts)
        self.close()
        residency = Residency(slots, len(layers), top_k, make_policy(name, counts))
        extra = READERS + (top_k if self.prefetch else 0)
        rows = rows_on(device, slots + extra, store.nbytes)
        self._memory = _Slots(store, residency, slots, rows, layers[0])
        if self.prefetch is not None:
            own = range(slots + READERS, slots + extra)
            self._memory.read_ahead_into(own, self.prefetch)
        if self.preload_top_k:
            self._memory.preload(counts, self.preload_top_k)

    def _best(self, store: ExpertStore, top_k: int, slots: int, counts: Counts) -> str:
        """The policy that is best on the trace, which must be of this model."""
        assert self._trace is not None
        self._trace.about.check_model(
            len(store.layers), store.experts, top_k, lambda: routers_of(store.path), store.path
        )
        rows = {layer: row for row, layer in enumerate(store.layers)}  # of a trace
        known = {(rows[layer], expert): uses for (layer, expert), uses in counts.items()}
        return best_policy(self._trace, slots, known or None)

    def close(self) -> None:
        """Give the memory back."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def matrices(
        self, layer: int, experts: Sequence[int], then: Callable[[], None] | None = None
    ) -> Iterator[tuple[int, Matrices]]:
        """The matrices of experts that a layer needs now, in the order in which they are there.

        A pair is valid until the next one is asked for.

        Args:
            layer: From 0.
            experts: Each once.
            then: Is called when all of them are in memory; what it reads ahead is in nobody's way.

        Raises:
            CheckpointError: One cannot be read; the cache can be used on.
        """
        return self._opened().matrices(layer, experts, then)

    def read_ahead(self, layer: int, foresee: Callable[[], Sequence[int]]) -> None:
        """Begin to read what a layer will probably need, as far as `prefetch` allows it.

        Args:
            layer: From 0.
            foresee: Gives its experts, each once; not called where nothing may be read.
        """
        self._opened().read_ahead(layer, foresee)

    def get_stats(self) -> CacheStats:
        """What it has done.

        Raises:
            ConfigError: No model has it yet.
        """
        return self._opened().stats()

    def resident(self) -> list[Key]:
        """Which experts are in memory, in the order of layers and numbers."""
        return self._opened().resident()

    def reset_stats(self) -> None:
        """Count from zero again; experts stay."""
        self._opened().reset()

    def _opened(self) -> "_Slots":
        if self._memory is None:
            raise ConfigError(
                "this ExpertCache belongs to no model yet; give it to model.set_expert_cache(...)."
            )
        return self._memory


class _Slots:
    """Allocated slots, and who is in them."""

    def __init__(
        self,
        store: ExpertStore,
        residency: Residency,
        slots: int,
        rows: Rows,
        first_layer: int,
    ) -> None:
        self._store, self._residency, self._first = store, residency, first_layer
        self._slots, self._rows = slots, rows
        self._row_of = list(range(slots + READERS))
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="experts")
        self._ahead: ReadingAhead | None = None
        self.reset()

    def read_ahead_into(self, rows: Sequence[int], terms: Prefetch) -> None:
        """Read ahead from now on, into rows that no slot has."""
        self._ahead = ReadingAhead(terms, rows, self._fill_row, self._store.bytes_to_read)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        if self._ahead is not None:
            self._ahead.close()

    def resident(self) -> list[Key]:
        return [key for key in sorted(self._store.keys) if key in self._residency]

    def reset(self) -> None:
        self._residency.tally = Tally()
        self._read = self._passes = 0
        self._seconds = 0.0
        if self._ahead is not None:
            self._ahead.reset()

    def stats(self) -> CacheStats:
        tally = self._residency.tally
        return CacheStats(
            hits=tally.hits,
            misses=tally.misses,
            evictions=tally.evictions,
            bytes_read=self._read,
            passes=self._passes,
            load_seconds=self._seconds,
            slots=self._slots,
            prefetch=None if self._ahead is None else self._ahead.stats(),
        )

    def preload(self, counts: Counts, top_k: int) -> None:
        """Read the most used experts of each layer into free slots."""
        taken: dict[int, int] = {}
        reads = []
        for layer, expert in most_used(counts):
            if taken.get(layer, 0) == top_k:
                continue
            if (slot := self._residency.place((layer, expert))) is None:
                break
            taken[layer] = taken.get(layer, 0) + 1
            reads.append(self._start((layer, expert), slot))
        for read in reads:
            read.result()

    def matrices(
        self, layer: int, experts: Sequence[int], then: Callable[[], None] | None
    ) -> Iterator[tuple[int, Matrices]]:
        """See `ExpertCache.matrices`."""
        if layer == self._first:
            self._passes += 1
            if self._ahead is not None:
                self._ahead.begin_pass()
        answer = self._residency.request(layer, experts)
        reads = self._reads(layer, experts, answer)
        unread = len(reads)
        if answer.beside:
            then = None
        try:
            if then is not None and not unread:
                then()
            for expert, slot in answer.there.items():
                yield from self._lent((layer, expert), slot)
            for read in as_completed(reads):
                read.result()
                unread -= 1
                if then is not None and not unread:
                    then()
                expert = reads[read]
                yield from self._lent((layer, expert), answer.to_read[expert])
            yield from self._beside(layer, answer)
        finally:
            self._settle(layer, reads)

    def read_ahead(self, layer: int, foresee: Callable[[], Sequence[int]]) -> None:
        """See `ExpertCache.read_ahead`."""
        if self._ahead is not None and self._ahead.trial.reads:
            self._ahead.start(layer, foresee(), self._residency.__contains__)

    def _reads(self, layer: int, experts: Sequence[int], answer: Answer) -> dict[Future[None], int]:
        """Reads that are under way, of those that must come in; some of them since before."""
        early = self._ahead.taken(layer, experts, answer.to_read) if self._ahead else {}
        reads = {}
        for expert, slot in answer.to_read.items():
            if expert not in early:
                reads[self._start((layer, expert), slot)] = expert
                continue
            assert self._ahead is not None
            row, reading = early[expert]
            self._ahead.give(self._row_of[slot])
            self._row_of[slot] = row
            reads[reading] = expert
        return reads

    def _beside(self, layer: int, answer: Answer) -> Iterator[tuple[int, Matrices]]:
        """Those that do not stay, a few at a time in slots of their own."""
        for start in range(0, len(answer.beside), READERS):
            some = answer.beside[start : start + READERS]
            reads = [self._start((layer, it), self._slots + place) for place, it in enumerate(some)]
            for read in reads:
                read.exception()  # wait for all, so that no thread writes when this one leaves
            for place, (expert, read) in enumerate(zip(some, reads, strict=True)):
                read.result()
                yield from self._lent((layer, expert), self._slots + place)

    def _settle(self, layer: int, reads: dict[Future[None], int]) -> None:
        """Wait for all reads; who could not be read is not there."""
        for read, expert in reads.items():
            if read.exception() is not None:
                self._residency.forget((layer, expert))

    def _start(self, key: Key, slot: int) -> Future[None]:
        self._read += self._store.bytes_to_read(key)
        return self._pool.submit(self._fill, key, slot)

    def _fill(self, key: Key, slot: int) -> None:
        started = perf_counter()
        self._fill_row(key, self._row_of[slot])
        self._seconds += perf_counter() - started

    def _fill_row(self, key: Key, row: int) -> None:
        self._rows.fill(key, row, self._store.read_into)

    def _lent(self, key: Key, slot: int) -> Iterator[tuple[int, Matrices]]:
        row = self._row_of[slot]
        try:
            yield key[1], self._store.matrices(key, self._rows.lend(row))
        finally:
            self._rows.returned(row)
