"""When to try again what has failed: after a second, then after ever longer, at most a minute.

It does not know what failed.
"""

import time
from collections.abc import Callable

FIRST_SECONDS = 1.0
LONGEST_SECONDS = 60.0


class Backoff:
    """The times between attempts.

    Args:
        clock: A monotonic clock in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pause = 0.0
        self._until = 0.0

    @property
    def waiting(self) -> bool:
        """Whether it is too early for another attempt."""
        return self._pause > 0 and self._clock() < self._until

    def failed(self) -> None:
        """An attempt has failed: wait twice as long as before."""
        self._pause = min(max(2 * self._pause, FIRST_SECONDS), LONGEST_SECONDS)
        self._until = self._clock() + self._pause

    def worked(self) -> None:
        """An attempt has worked."""
        self._pause = 0.0
