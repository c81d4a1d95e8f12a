"""Who reads a run, of several with one Redis server: one, then another; without the server, all."""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from websockets.sync.client import connect

from moe_megatron.testing.written_run import write_run
from moe_megatron.webapp.live_feed import Channel, Watcher
from moe_megatron.webapp.news import News, NewsReader
from moe_megatron.webapp.run_facts import run_id
from moe_megatron.webapp.run_reader import RunReader
from moe_megatron.webapp.serving import DashboardOptions, DashboardServer
from moe_megatron.webapp.sharing import sharing as module
from moe_megatron.webapp.sharing.address import RedisAddress
from moe_megatron.webapp.sharing.message import encode_news
from moe_megatron.webapp.sharing.sharing import SharedRun, Sharing


def news(step: int) -> News:
    said = json.dumps({"type": "step", "step": step})
    return News(first_step=1, last_step=step, frame=None, step=said, state="running")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that is waited for, ten times sooner."""
    for name in ("LOCK_SECONDS", "_RENEW_SECONDS", "_TRY_SECONDS", "_AGAIN_SECONDS"):
        monkeypatch.setattr(module, name, getattr(module, name) / 10)


Play = Callable[[Sharing, SharedRun, SharedRun], Awaitable[None]]


def play(address: str, what: Play) -> None:
    """Two processes with one server, as far as the server can tell."""

    async def played() -> None:
        sharings = [Sharing(RedisAddress.parse(address)) for _ in range(2)]
        try:
            await what(sharings[0], *(SharedRun(it, "run") for it in sharings))
        finally:
            for it in sharings:
                await it.client.aclose()

    asyncio.run(played())


async def until(found: Callable[[], Awaitable[bool]], tries: int = 500) -> None:
    for _ in range(tries):
        if await found():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not happen")


def test_one_reads_and_the_other_gets_what_it_gives_once(redis) -> None:
    async def what(sharing: Sharing, first: SharedRun, second: SharedRun) -> None:
        assert [await first.is_ours(), await second.is_ours()] == [True, False]
        assert await second.take() is None
        await first.give(news(1))
        assert await second.take() == news(1)
        assert await second.take() is None
        await first.give(news(2))
        await first.give(news(3))
        assert await second.take() == news(3)
        # Nothing is kept but the newest, and that not for ever.
        keys = {it async for it in sharing.client.scan_iter()}
        assert keys == {b"moe-megatron:run:news", b"moe-megatron:run:reader"}
        assert all([0 < await sharing.client.pttl(it) <= 3000 for it in keys])
        await first.leave()
        await asyncio.sleep(module._TRY_SECONDS)
        assert await second.is_ours()

    play(redis.address, what)


def test_another_takes_over_from_one_that_is_silent(redis, quick) -> None:
    async def what(sharing: Sharing, first: SharedRun, second: SharedRun) -> None:
        assert await first.is_ours()
        await until(second.is_ours)
        await second.give(news(5))
        # The first one was only late: it finds out, gives no more, and takes.
        await first.give(news(4))
        await asyncio.sleep(module._RENEW_SECONDS)
        assert not await first.is_ours()
        await second.is_ours()
        assert await first.take() == news(5)

    play(redis.address, what)


@pytest.mark.parametrize("data", [b"", b"\x80\x04N.", b"x" * 5 * 2**20, b"{}"])
def test_what_is_no_news_is_left_out(redis, data: bytes) -> None:
    async def what(sharing: Sharing, first: SharedRun, second: SharedRun) -> None:
        await first.is_ours()
        await second.is_ours()
        await sharing.client.set("moe-megatron:run:news", data)
        assert await second.take() is None
        await sharing.client.set("moe-megatron:run:news", encode_news(news(7)))
        assert await second.take() == news(7)

    play(redis.address, what)


def test_without_the_server_each_reads_and_with_it_one_again(redis, quick, caplog) -> None:
    async def what(sharing: Sharing, first: SharedRun, second: SharedRun) -> None:
        async def both() -> list[bool]:
            return [await first.is_ours(), await second.is_ours()]

        async def each() -> bool:
            return all(await both())

        async def one() -> bool:
            return sum(await both()) == 1

        assert await one()
        redis.stop()
        await until(each)
        await first.give(news(1))  # nobody is there, and nothing happens
        redis.start()
        await until(one)

    play(redis.address, what)
    said = [it.getMessage() for it in caplog.records if it.name == module.__name__]
    assert Counter("does not answer" in it for it in said) == {True: 2, False: 2}
    assert all(redis.address in it and "horse" not in it for it in said)


def test_a_run_is_read_by_one_of_two_servers_and_both_tell_of_it(
    redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "run", 5, history=0)
    looks: Counter[NewsReader] = Counter()
    look = NewsReader.look
    monkeypatch.setattr(
        NewsReader, "look", lambda it, *more: (looks.update([it]), look(it, *more))[1]
    )
    options = DashboardOptions(folders=[tmp_path], port=0, redis=redis.address)

    def frame(client) -> bytes:
        while not isinstance(found := client.recv(timeout=10), bytes):
            pass
        return found

    with DashboardServer(options) as first, DashboardServer(options) as second:
        live = [
            it.url.replace("http", "ws") + f"api/live?run={run_id(run)}" for it in (first, second)
        ]
        with connect(live[0]) as one, connect(live[1]) as other:
            assert frame(one) == frame(other)
            assert len(looks) == 1


def test_who_comes_while_a_run_is_given_back_is_told_of_it(tmp_path: Path) -> None:
    class Slow:
        """A server that takes its time to give a lock back."""

        def __init__(self) -> None:
            self.leaves, self.may_go_on = asyncio.Event(), asyncio.Event()

        async def is_ours(self) -> bool:
            return True

        async def give(self, news: News) -> None:
            pass

        async def leave(self) -> None:
            self.leaves.set()
            await self.may_go_on.wait()

    async def played() -> None:
        slow, watcher = Slow(), Watcher(None)
        channel = Channel(RunReader(write_run(tmp_path / "run", 2, history=0)), slow)
        channel.join(watcher)
        await asyncio.wait_for(watcher.woken.wait(), 20)
        channel.leave(watcher)
        watcher.woken.clear()
        await asyncio.wait_for(slow.leaves.wait(), 20)
        channel.join(watcher)
        slow.may_go_on.set()
        await asyncio.wait_for(watcher.woken.wait(), 20)
        channel.leave(watcher)

    asyncio.run(played())
