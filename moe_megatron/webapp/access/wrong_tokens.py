"""Whoever gives wrong tokens is made to wait: some a minute from each address, and no more.

Nobody can guess 256 bits; this keeps a program that tries from taking the server's time, and makes
it be seen in the log. Addresses are remembered for as long as they matter, and not too many.
"""

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable

MOST_WRONG = 10
SECONDS = 60.0
_MOST_ADDRESSES = 4096

logger = logging.getLogger(__name__)


class WrongTokens:
    """Counts wrong tokens by address.

    Args:
        clock: Gives seconds, from any moment on.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def wait(self, address: str) -> float:
        """For how many seconds an address may not try again; 0 if it may."""
        with self._lock:
            times, now = self._times.get(address), self._clock()
            if times is None or len(times) < MOST_WRONG:
                return 0.0
            return max(0.0, times[0] + SECONDS - now)

    def note(self, address: str) -> None:
        """Remember a wrong token."""
        with self._lock:
            times = self._times.pop(address, None) or deque(maxlen=MOST_WRONG)
            times.append(self._clock())
            self._times[address] = times
            while len(self._times) > _MOST_ADDRESSES:
                self._times.popitem(last=False)
            if len(times) == MOST_WRONG:
                logger.warning("%d wrong access tokens from %s", MOST_WRONG, address)
