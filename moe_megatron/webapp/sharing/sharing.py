"""Who of several processes reads a run: one, which has its lock; the others take what it gives.

- The lock of a run expires, so that another process takes over from one that died or hangs; who has
  it renews it, and gives it back when nobody watches any more.
- Beside it stands one value, the newest news of the run, which expires, too. It is replaced by
  whoever has the lock, in the same command that renews it. Nothing waits in Redis for slow ones.
- A server that does not answer is asked again from time to time. Until it does, everybody reads.

It knows neither what news say nor who watches.
"""

import logging
import secrets
import time
from typing import Any

from moe_megatron.errors import DataError
from moe_megatron.webapp.news import News
from moe_megatron.webapp.sharing.address import RedisAddress
from moe_megatron.webapp.sharing.message import HEAD_BYTES, MOST_BYTES, decode_news, encode_news

LOCK_SECONDS = 3.0
"""Until another process takes over from one that died."""
_RENEW_SECONDS, _TRY_SECONDS = 1.0, 0.5
_AGAIN_SECONDS = 2.0
"""Until a server that did not answer is asked again."""

_KEEP = """
if redis.call('get', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('pexpire', KEYS[1], ARGV[2])
if ARGV[3] ~= '' then redis.call('set', KEYS[2], ARGV[3], 'px', ARGV[2]) end
return 1
"""
"""Renews a lock that is ours, and the value beside it."""
_LEAVE = "if redis.call('get', KEYS[1]) == ARGV[1] then redis.call('del', KEYS[1]) end"

logger = logging.getLogger(__name__)


class Sharing:
    """A Redis server through which processes share news.

    Args:
        address: Of the server; all processes with the same one see the same folders.

    Raises:
        BackendUnavailableError: The client of Redis is not installed.
    """

    def __init__(self, address: RedisAddress) -> None:
        options = address.options()
        from redis.asyncio import Redis

        self.client: Any = Redis(**options)
        self._address = address
        self._ask_again = 0.0
        self._answers = True

    @property
    def is_asked(self) -> bool:
        """Whether the server is asked at all: it answered, or it is time to try again."""
        return self._answers or time.monotonic() >= self._ask_again

    def answered(self) -> None:
        """Note that the server is there."""
        if not self._answers:
            self._answers = True
            logger.warning("%s answers again: one worker reads for all", self._address)

    def failed(self, error: Exception) -> None:
        """Note that it is not."""
        self._ask_again = time.monotonic() + _AGAIN_SECONDS
        if self._answers:
            self._answers = False
            logger.warning(
                "%s does not answer (%s): this worker reads the runs by itself until it does",
                self._address,
                " ".join(str(error).split()),
            )


class SharedRun:
    """The news of one run, as this process gives and takes them.

    Args:
        sharing: The server.
        run: Id of the run.
    """

    def __init__(self, sharing: Sharing, run: str) -> None:
        self._sharing = sharing
        self._me = secrets.token_hex(8)
        self._keys = (f"moe-megatron:{run}:reader", f"moe-megatron:{run}:news")
        self._is_mine = False
        self._asked = 0.0
        self._given: News | None = None
        self._data = b""
        self._taken: bytes | None = None

    async def is_ours(self) -> bool:
        """Whether this process is to read the run now."""
        if not self._sharing.is_asked:
            self._is_mine = False
            return True
        now = time.monotonic()
        if now - self._asked < (_RENEW_SECONDS if self._is_mine else _TRY_SECONDS):
            return self._is_mine
        self._asked = now
        if self._is_mine and await self._keep():
            return True
        if self._sharing.is_asked:
            life = int(1000 * LOCK_SECONDS)
            got = await self._ask("set", self._keys[0], self._me, nx=True, px=life)
            self._is_mine = bool(got)
            self._given, self._data, self._taken = None, b"", None
        return self._is_mine or not self._sharing.is_asked

    async def give(self, news: News) -> None:
        """Let the others have news, if this process reads for them and they are new."""
        if not self._is_mine or news == self._given:
            return
        try:
            self._data = encode_news(news)
        except DataError as error:
            logger.warning("%s", error)
            await self.leave()
            return
        self._given = news
        await self._keep()

    async def take(self) -> News | None:
        """The news of whoever reads the run; None where there are none that are new."""
        head = await self._ask("getrange", self._keys[1], 0, HEAD_BYTES - 1)
        if not head or head == self._taken:
            return None
        data = await self._ask("getrange", self._keys[1], 0, MOST_BYTES)
        if not data:
            return None
        self._taken = data[:HEAD_BYTES]
        found = decode_news(data)
        if found is None:
            logger.warning("what is in %s is no news, and is left out", self._keys[1])
        return found

    async def leave(self) -> None:
        """Let another process read the run."""
        if self._is_mine:
            self._is_mine = False
            await self._ask("eval", _LEAVE, 1, self._keys[0], self._me)

    async def _keep(self) -> bool:
        """Keep the lock, and the news beside it; whether it is still ours."""
        life = int(1000 * LOCK_SECONDS)
        found = await self._ask("eval", _KEEP, 2, *self._keys, self._me, life, self._data)
        self._is_mine = bool(found)
        return self._is_mine

    async def _ask(self, command: str, *words: Any, **more: Any) -> Any:
        """The answer of the server; None where it gives none."""
        from redis.exceptions import RedisError

        try:
            found = await getattr(self._sharing.client, command)(*words, **more)
        except (RedisError, OSError) as error:
            self._sharing.failed(error)
            return None
        self._sharing.answered()
        return found
