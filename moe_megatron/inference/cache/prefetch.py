"""Reading experts ahead of their use: how much of it is allowed, and whether it pays.

What reading ahead gains depends on the disk, the model and the machine; others measured from 5 %
faster to half as fast. So it is tried in turns, some forward passes with and as many without, and
ends itself when it does not gain. The module sees numbers and times alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter

from moe_megatron.config.arguments import real, whole
from moe_megatron.errors import ConfigError

_FIRST_WINDOWS = 4
"""With, without, with, without; then the first verdict."""
_LATER_WINDOWS = 8
"""The last of them without."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prefetch:
    """Terms of reading ahead; see `ExpertCache(prefetch=...)`."""

    megabytes_per_pass: float = 64.0
    """The most that is read ahead in a forward pass, in 10^6 bytes."""
    least_useful: float = 0.5
    """It ends when less than this share of what it has read was needed."""
    window: int = 16
    """Forward passes that are timed with it, and then without."""

    def __post_init__(self) -> None:
        real("megabytes_per_pass", self.megabytes_per_pass, example=64.0, above=True)
        whole("window", self.window, least=3)
        if not 0.0 <= real("least_useful", self.least_useful, example=0.5) <= 1.0:
            raise ConfigError(f"least_useful ({self.least_useful:g}) must be from 0 to 1.")


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefetchStats:
    """What reading ahead has done since the cache was made, or since `reset_stats`."""

    recall: float
    """Of the experts that layers needed, the share that was foreseen; nan before any was."""
    bytes_read: int
    bytes_wasted: int
    """Of those, not needed by the layer for which they were read."""
    ended: str | None
    """Why it ended itself; None: it goes on."""


class Trial:
    """Decides whether a forward pass reads ahead, from how long those before it took.

    Args:
        terms: What is allowed.
        clock: Seconds.
    """

    def __init__(self, terms: Prefetch, clock: Callable[[], float] = perf_counter) -> None:
        self._terms, self._clock = terms, clock
        self.ended: str | None = None
        self._seconds: dict[bool, list[float]] = {True: [], False: []}
        self._read = self._useful = self._this_pass = 0
        self._window = self._passes = 0
        self._began: float | None = None

    @property
    def reads(self) -> bool:
        """Whether this pass reads ahead."""
        return self.ended is None and self._with(self._window)

    def begin_pass(self) -> None:
        """Note that a forward pass begins, and the one before it has ended."""
        self._this_pass = 0
        if self.ended is not None:
            return
        now = self._clock()
        if self._began is not None and self._passes > 1:  # the first follows one of another kind
            self._seconds[self._with(self._window)].append(now - self._began)
        self._began = now
        self._passes += 1
        if self._passes > self._terms.window:
            self._next_window()

    def allows(self, nbytes: int) -> bool:
        """Whether so many bytes more may be read in this pass; they count as read."""
        if self._this_pass + nbytes > self._terms.megabytes_per_pass * 1e6:
            return False
        self._this_pass += nbytes
        self._read += nbytes
        return True

    def withdrawn(self, nbytes: int) -> None:
        """Note that bytes that were allowed are not read after all."""
        self._read -= nbytes

    def useful(self, nbytes: int) -> None:
        """Note that bytes that were read ahead are needed."""
        self._useful += nbytes

    def _with(self, window: int) -> bool:
        if window < _FIRST_WINDOWS:
            return window % 2 == 0
        return (window - _FIRST_WINDOWS) % _LATER_WINDOWS != _LATER_WINDOWS - 1

    def _next_window(self) -> None:
        self._passes = 1
        self._window += 1
        if self._window >= _FIRST_WINDOWS and not self._with(self._window - 1):
            self._judge()

    def _judge(self) -> None:
        ahead, without = (median(self._seconds[it]) for it in (True, False))
        if self._useful < self._terms.least_useful * self._read:
            share = self._useful / self._read
            self.ended = f"{share:.0%} of the bytes that were read ahead were needed"
        elif ahead >= without:
            self.ended = f"a forward pass took {ahead:.3g} s with it and {without:.3g} s without"
        self._seconds = {True: [], False: []}
        self._read = self._useful = 0
