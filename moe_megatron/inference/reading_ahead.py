"""Reads experts before a layer asks for them, into memory of its own, in a queue of its own.

Nothing that is read ahead is in the cache until a layer needs it: then the memory changes hands,
and policy and slots are as they would have been without. So it can evict nothing and change no
result; what it costs is bytes and the time of the disk.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from moe_megatron.inference.cache.policies import Key
from moe_megatron.inference.cache.prefetch import Prefetch, PrefetchStats, Trial

Reading = tuple[int, Future[None]]
"""A row of memory, and what fills it."""


class ReadingAhead:
    """Experts that are on their way before they are needed.

    Args:
        terms: What is allowed.
        rows: Rows of memory that are its own.
        read: Fills a row with an expert; called by its own thread.
        size: Bytes that reading an expert takes.
    """

    def __init__(
        self,
        terms: Prefetch,
        rows: Iterable[int],
        read: Callable[[Key, int], None],
        size: Callable[[Key], int],
    ) -> None:
        self.trial = Trial(terms)
        self._read, self._size = read, size
        self._free = list(rows)
        self._unwanted: list[Reading] = []
        self._pending: dict[Key, Reading] = {}
        self._foreseen: dict[int, frozenset[int]] = {}
        self._queue = ThreadPoolExecutor(1, thread_name_prefix="experts-ahead")
        self.reset()

    def reset(self) -> None:
        """Count from zero again."""
        self._needed = self._right = self._bytes = self._useful = 0

    def stats(self) -> PrefetchStats:
        """What it has done."""
        return PrefetchStats(
            recall=self._right / self._needed if self._needed else float("nan"),
            bytes_read=self._bytes,
            bytes_wasted=self._bytes - self._useful - sum(map(self._size, self._pending)),
            ended=self.trial.ended,
        )

    def begin_pass(self) -> None:
        """Note that a forward pass begins; what one that failed left is unwanted."""
        for key in [*self._pending]:
            self._drop(key)
        self._foreseen.clear()
        self.trial.begin_pass()

    def start(self, layer: int, experts: Sequence[int], there: Callable[[Key], bool]) -> None:
        """Begin to read what a layer will probably need and is not there."""
        if layer in self._foreseen:
            return
        self._foreseen[layer] = frozenset(experts)
        self._reclaim()
        for key in ((layer, it) for it in experts):
            if there(key):
                continue
            if not self._free or not self.trial.allows(self._size(key)):
                return
            self._bytes += self._size(key)
            row = self._free.pop()
            self._pending[key] = row, self._queue.submit(self._read, key, row)

    def taken(
        self, layer: int, needed: Sequence[int], missing: Collection[int]
    ) -> dict[int, Reading]:
        """What was read ahead, or is being, of the experts that a layer needs and lacks.

        Each row is the caller's from now on, who gives another one back for it.
        """
        foreseen = self._foreseen.pop(layer, None)
        if foreseen is not None:
            self._needed += len(needed)
            self._right += len(foreseen.intersection(needed))
        found = {}
        for key in [it for it in self._pending if it[0] == layer]:
            if key[1] not in missing or not self._begun(key):
                self._drop(key)
                continue
            found[key[1]] = self._pending.pop(key)
            self._useful += self._size(key)
            self.trial.useful(self._size(key))
        return found

    def give(self, row: int) -> None:
        """A row in exchange for one that was taken."""
        self._free.append(row)

    def close(self) -> None:
        """Stop reading."""
        self._queue.shutdown(cancel_futures=True)

    def _begun(self, key: Key) -> bool:
        reading = self._pending[key][1]
        return reading.running() or reading.done()

    def _drop(self, key: Key) -> None:
        """Whoever is not needed, or has not begun to be read: the layer's own reads are faster."""
        row, reading = self._pending.pop(key)
        if reading.cancel():
            self._bytes -= self._size(key)
            self.trial.withdrawn(self._size(key))
            self._free.append(row)
        else:
            self._unwanted.append((row, reading))

    def _reclaim(self) -> None:
        """Rows whose reads have ended are free."""
        self._free += [row for row, reading in self._unwanted if reading.done()]
        self._unwanted = [it for it in self._unwanted if not it[1].done()]
