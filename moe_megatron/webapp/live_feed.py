"""Live frames over WebSockets: while somebody watches a run, its news, at most `HZ` times a second.

One task looks at a run for all who watch it, and none where nobody does; of several processes, one
looks for all, if they share a Redis server. It keeps the latest frame alone: a watcher who is slow
finds the newest one when it comes back, and nothing waits for it in memory. It does not know what
is in a frame.
"""

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect

from moe_megatron.errors import MoEError
from moe_megatron.reading import parse_json
from moe_megatron.webapp.news import News, NewsReader
from moe_megatron.webapp.run_list import RunList
from moe_megatron.webapp.run_reader import RunReader
from moe_megatron.webapp.sharing.sharing import SharedRun, Sharing

HZ = 10.0
MOST_WATCHERS = 256
_TRY_AGAIN, _UNSUPPORTED = 1013, 1003

logger = logging.getLogger(__name__)


class Channel:
    """What those who watch one run share.

    Args:
        reader: The run.
        shared: Its news among several processes; None where this one is alone.
    """

    def __init__(self, reader: RunReader, shared: SharedRun | None) -> None:
        self.reader = reader
        self.news: News | None = None
        self.watchers: set[Watcher] = set()
        self._read, self._shared = NewsReader(reader), shared
        self._task: asyncio.Task[None] | None = None

    def join(self, watcher: "Watcher") -> None:
        """Begin to watch."""
        self.watchers.add(watcher)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._follow())

    def leave(self, watcher: "Watcher") -> None:
        """End it."""
        self.watchers.discard(watcher)

    async def _follow(self) -> None:
        while self.watchers:
            began, found = time.monotonic(), self.news
            try:
                found = await self._newest()
            except (MoEError, OSError) as error:  # the run may be mended while it is watched
                logger.debug("%s cannot be read: %s", self.reader.run_dir, error)
            if found != self.news:
                self.news = found
                for watcher in self.watchers:
                    watcher.woken.set()
            await asyncio.sleep(max(0.0, 1 / HZ - (time.monotonic() - began)))
        self.news = None
        if self._shared is not None:
            await self._shared.leave()
        if self.watchers:  # somebody came meanwhile
            self._task = asyncio.create_task(self._follow())

    async def _newest(self) -> News | None:
        """The news, read here, or taken from the process that reads them for all."""
        shared = self._shared
        if shared is not None and not await shared.is_ours():
            return await shared.take() or self.news
        found = await asyncio.to_thread(self._read.look, self.news)
        if shared is not None:
            await shared.give(found)
        return found


class Watcher:
    """One connection; `woken` when there is news."""

    def __init__(self, socket: WebSocket) -> None:
        self.woken = asyncio.Event()
        self._socket = socket
        self._sent: News | None = None
        self._event = 0

    async def send(self, channel: Channel) -> None:
        """Send what is new, one after the other, for as long as the connection lasts."""
        self._sent, self._event = None, channel.reader.events.last
        known = channel.news
        first, last = channel.reader.span if known is None else (known.first_step, known.last_step)
        await self.say({"type": "hello", "first_step": first, "last_step": last, "hz": HZ})
        self.woken.set()
        while True:
            await self.woken.wait()
            self.woken.clear()
            news: News | None = channel.news
            before: News | None = self._sent
            if news is None:
                continue
            self._sent = news
            if before is None or news.frame is not before.frame:
                if news.frame is not None:
                    await self._socket.send_bytes(news.frame)
                await self._socket.send_text(news.step)
            for event in news.events:
                if event["seq"] > self._event:
                    self._event = event["seq"]
                    await self.say({"type": "event", **event})
            if before is None or news.state != before.state:
                await self.say({"type": "state", "state": news.state})

    async def say(self, message: Mapping[str, Any]) -> None:
        """Send a message as JSON."""
        await self._socket.send_text(json.dumps(message, allow_nan=False))


class LiveFeed:
    """The WebSockets of a dashboard.

    Args:
        runs: What may be watched.
        sharing: The server through which several processes share news; None for this one alone.
    """

    def __init__(self, runs: RunList, sharing: Sharing | None = None) -> None:
        self._runs, self._sharing = runs, sharing
        self._channels: dict[str, Channel] = {}
        self._connected = 0

    async def serve(self, socket: WebSocket) -> None:
        """Serve a connection until it ends."""
        if self._connected >= MOST_WATCHERS:
            await socket.accept()
            await socket.close(_TRY_AGAIN, "too many watch already; close another page")
            return
        self._connected += 1
        try:
            await socket.accept()
            await self._talk(socket, socket.query_params.get("run", ""))
        except (WebSocketDisconnect, RuntimeError):  # RuntimeError: sent to one that has gone
            pass
        finally:
            self._connected -= 1

    async def _talk(self, socket: WebSocket, wanted: str) -> None:
        watcher, sending = Watcher(socket), None
        channel: Channel | None = None
        try:
            while True:
                if wanted:
                    channel = await self._switch(watcher, channel, wanted)
                    sending = await _restart(sending, watcher, channel)
                    wanted = ""
                message = _parse(await socket.receive())
                kind = message.get("type")
                if kind == "watch":
                    wanted = str(message.get("run", ""))
                elif kind == "pause" and channel is not None:
                    channel.leave(watcher)
                elif kind == "resume" and channel is not None:
                    channel.join(watcher)
                    watcher.woken.set()
                elif kind not in ("pause", "resume"):
                    await socket.close(_UNSUPPORTED, "watch, pause and resume are understood")
                    return
        finally:
            if channel is not None:
                self._leave(watcher, channel)
            await _stop(sending)

    async def _switch(
        self, watcher: Watcher, before: Channel | None, wanted: str
    ) -> Channel | None:
        """Watch another run; None, and the watcher is told, if it cannot be."""
        if before is not None:
            self._leave(watcher, before)
        try:
            reader = await asyncio.to_thread(self._runs.reader, wanted)
        except (MoEError, OSError) as error:
            await watcher.say({"type": "error", "error": str(error)})
            return None
        channel = self._channels.get(wanted)
        if channel is None:
            shared = None if self._sharing is None else SharedRun(self._sharing, wanted)
            channel = self._channels[wanted] = Channel(reader, shared)
        channel.join(watcher)
        return channel

    def _leave(self, watcher: Watcher, channel: Channel) -> None:
        channel.leave(watcher)
        if not channel.watchers:
            self._channels = {it: at for it, at in self._channels.items() if at is not channel}


async def _restart(
    sending: asyncio.Task[None] | None, watcher: Watcher, channel: Channel | None
) -> asyncio.Task[None] | None:
    await _stop(sending)
    return None if channel is None else asyncio.create_task(watcher.send(channel))


async def _stop(sending: asyncio.Task[None] | None) -> None:
    if sending is not None:
        sending.cancel()
        await asyncio.wait([sending])
        if not sending.cancelled():
            sending.exception()  # it failed because its browser has gone


def _parse(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a browser said; {} for what is no message.

    Raises:
        WebSocketDisconnect: It has gone.
    """
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1000))
    try:
        found = parse_json(message.get("text") or "")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
