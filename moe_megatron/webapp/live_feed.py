"""Live frames over WebSockets: while somebody watches a run, its news, at most `HZ` times a second.

One task looks at a run for all who watch it, and none where nobody does. It keeps the latest frame
alone: a watcher who is slow finds the newest one when it comes back, and nothing waits for it in
memory. It does not know what is in a frame.
"""

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect

from moe_megatron.errors import MoEError
from moe_megatron.reading import parse_json
from moe_megatron.telemetry.values.layer_values import load_entropy_ratio
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.webapp.frames import encode_frame
from moe_megatron.webapp.json_values import nested, nullable
from moe_megatron.webapp.run_list import RunList
from moe_megatron.webapp.run_reader import RunReader

HZ = 10.0
MOST_WATCHERS = 256
_STATE_SECONDS = 1.0
_TRY_AGAIN, _UNSUPPORTED = 1013, 1003

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """The state of a run at one moment, ready to be sent."""

    first_step: int
    last_step: int
    frame: bytes | None
    step: str
    """The message about the last step."""
    state: str
    newest_event: int


class Channel:
    """What those who watch one run share."""

    def __init__(self, reader: RunReader) -> None:
        self.reader = reader
        self.news: News | None = None
        self.watchers: set[Watcher] = set()
        self._task: asyncio.Task[None] | None = None
        self._looked = 0.0
        self._state = ""

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
                found = await asyncio.to_thread(self._look)
            except (MoEError, OSError) as error:  # the run may be mended while it is watched
                logger.debug("%s cannot be read: %s", self.reader.run_dir, error)
            if found != self.news:
                self.news = found
                for watcher in self.watchers:
                    watcher.woken.set()
            await asyncio.sleep(max(0.0, 1 / HZ - (time.monotonic() - began)))
        self.news = None

    def _look(self) -> News:
        run = self.reader
        with run.lock:
            run.refresh()
            now = time.monotonic()
            if now - self._looked >= _STATE_SECONDS:
                self._looked, self._state = now, run.state
            first, last = run.span
            before = self.news
            if before is not None and (before.last_step, before.first_step) == (last, first):
                frame, step = before.frame, before.step
            else:
                routing = _routing(run)
                frame = _frame(routing, run.windows.last_step)
                step = json.dumps(_step(run, routing), allow_nan=False)
            return News(
                first_step=first,
                last_step=last,
                frame=frame,
                step=step,
                state=self._state,
                newest_event=run.events.last,
            )


def _routing(run: RunReader) -> RoutingProfile | None:
    """The routing of the last step that has one."""
    step = run.windows.last_step
    return run.windows.profile(step, step) if step else None


def _frame(routing: RoutingProfile | None, step: int) -> bytes | None:
    if routing is None or not routing.steps:
        return None
    return encode_frame(routing.tokens_per_expert, step, step)


def _step(run: RunReader, routing: RoutingProfile | None) -> Mapping[str, Any]:
    record = run.steps.last
    return {
        "type": "step",
        "step": run.span[1],
        "loss": nullable(run.steps.loss),
        "tokens_per_second": nullable(None if record is None else record.tokens_per_second),
        "max_over_mean": [] if routing is None else nested(routing.imbalance),
        "entropy": [] if routing is None else nested(load_entropy_ratio(routing.tokens_per_expert)),
    }


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
        first, last = channel.reader.span
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
            for event in channel.reader.events.after(self._event):
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
    """

    def __init__(self, runs: RunList) -> None:
        self._runs = runs
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
            channel = self._channels[wanted] = Channel(reader)
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
