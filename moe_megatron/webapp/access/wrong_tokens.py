"""Whoever gives wrong tokens is made to wait: some a minute from each address, and no more.

Nobody can guess 256 bits; this keeps a program that tries from taking the server's time, and makes
it be seen in the log. They are counted in the database, so that several processes and dashboards
count together, and for as long as they matter.
"""

import logging
import time
from collections.abc import Callable

from sqlalchemy import Engine, delete, insert, select

from moe_megatron.webapp.access.database import wrong_tokens

MOST_WRONG = 10
SECONDS = 60.0

logger = logging.getLogger(__name__)


class WrongTokens:
    """Counts wrong tokens by address.

    Args:
        engine: Of the database.
        clock: Gives the seconds since 1970.
    """

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.time) -> None:
        self._engine, self._clock = engine, clock

    def wait(self, address: str) -> float:
        """For how many seconds an address may not try again; 0 if it may."""
        now = self._clock()
        times = self._newest(address, now)
        return 0.0 if len(times) < MOST_WRONG else max(0.0, times[-1] + SECONDS - now)

    def note(self, address: str) -> None:
        """Remember a wrong token."""
        now = self._clock()
        with self._engine.begin() as connection:
            connection.execute(delete(wrong_tokens).where(wrong_tokens.c.time <= now - SECONDS))
            connection.execute(insert(wrong_tokens).values(address=address, time=now))
        if len(self._newest(address, now)) == MOST_WRONG:
            logger.warning("%d wrong access tokens from %s", MOST_WRONG, address)

    def _newest(self, address: str, now: float) -> list[float]:
        """When the last wrong tokens of an address came, the newest first."""
        query = (
            select(wrong_tokens.c.time)
            .where(wrong_tokens.c.address == address, wrong_tokens.c.time > now - SECONDS)
            .order_by(wrong_tokens.c.time.desc())
            .limit(MOST_WRONG)
        )
        with self._engine.connect() as connection:
            return list(connection.execute(query).scalars())
