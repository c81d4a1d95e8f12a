"""Exchanges bytes between the processes of one host through shared memory.

Gloo sends every byte through a TCP socket and wakes two threads per rank for it. Here the sender
copies its bytes into memory that the receivers have mapped and sends them a message through a pipe,
and they copy the bytes out. The pipe also guarantees the order of the two copies, on every
processor. Memory (memfd) and pipes have no names: nothing is left in /dev/shm, and the kernel frees
them with the last process that holds them, however it ended. This module knows ranks and bytes, and
nothing about collectives.
"""

import functools
import logging
import mmap
import os
import select
import struct
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from moe_megatron.mcore.cpu import fast
from moe_megatron.platform.processes import process_space

_SPIN_SECONDS = 2e-3
"""How long to poll for a message before sleeping, if every rank has a core of its own."""
_ALIGNMENT = 64
_SMALLEST_BUFFER = 2**20
_MESSAGE = struct.Struct("=5q")
"""Number of the exchange, descriptor and generation of the buffer, start and length in bytes."""

_log = logging.getLogger(__name__)


class Buffer:
    """Shared memory of one process; replaced by a larger one when it is too small."""

    def __init__(self) -> None:
        self.descriptor = -1
        self.generation = 0
        self.bytes = torch.empty(0, dtype=torch.uint8)

    def reserve(self, size: int) -> None:
        """Make room for `size` bytes; what the buffer held may be lost.

        Raises:
            OSError: The machine does not have that much memory.
        """
        if size <= len(self.bytes):
            return
        self.close()
        self.descriptor = os.memfd_create("moe_megatron")
        self.generation += 1
        # Allocates the pages now: running out later would be a SIGBUS instead of an OSError.
        os.posix_fallocate(self.descriptor, 0, max(_SMALLEST_BUFFER, 1 << (size - 1).bit_length()))
        self.bytes = _mapped(self.descriptor)

    def close(self) -> None:
        """Free the memory; processes that have it mapped keep it until they unmap it."""
        self.bytes = self.bytes.new_empty(0)
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """What a rank sends to the others of its group, so that they can connect to it."""

    host: tuple[str, ...]
    """Host and process namespace; only ranks that agree in both can share memory."""
    process: int
    pipes: dict[int, int]
    """The descriptor that each peer must open to write to this rank."""
    failure: str
    """Why this rank cannot take part; empty if it can."""


class Channel:
    """The exchanges of one group of ranks, all on this host."""

    def __init__(self, rank: int, size: int, *, timeout: timedelta, spin_seconds: float) -> None:
        """Create this rank's end; `accept` and `start` connect it to the others.

        Args:
            rank: Rank of this process within the group.
            size: Number of ranks in the group.
            timeout: How long to wait for another rank.
            spin_seconds: How much of that time to poll before sleeping.
        """
        self._rank = rank
        # Each rank begins with a different peer, so that they do not all read from the same one.
        self._peers = [(rank + step) % size for step in range(1, size)]
        self._timeout = timeout
        self._spin_seconds = spin_seconds
        self._count = 0
        # A rank that sends its message of exchange n has finished reading the buffers of exchange
        # n - 1, so two alternating buffers are never overwritten while somebody reads them.
        self._buffers = (Buffer(), Buffer())
        self._windows: dict[tuple[int, int], tuple[int, torch.Tensor]] = {}
        self._incoming: dict[int, int] = {}
        self._outgoing: dict[int, int] = {}
        self._offered: dict[int, int] = {}
        self._processes: dict[int, int] = {}
        for peer in self._peers:
            self._incoming[peer], self._offered[peer] = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    @property
    def offered(self) -> dict[int, int]:
        """The descriptor that each peer must open to write to this rank."""
        return dict(self._offered)

    def accept(self, offers: Sequence[Offer]) -> None:
        """Open the other ranks' pipes.

        Raises:
            OSError: This process may not open the descriptors of another one.
        """
        for peer in self._peers:
            self._processes[peer] = offers[peer].process
            path = _path(offers[peer].process, offers[peer].pipes[self._rank])
            self._outgoing[peer] = os.open(path, os.O_WRONLY)

    def start(self) -> None:
        """Close the offered ends once all ranks have accepted: a pipe then ends with its writer."""
        for descriptor in self._offered.values():
            os.close(descriptor)
        self._offered.clear()

    def close(self) -> None:
        """Free everything."""
        for pipes in (self._incoming, self._outgoing, self._offered):
            for descriptor in pipes.values():
                os.close(descriptor)
            pipes.clear()
        for buffer in self._buffers:
            buffer.close()
        self._windows.clear()

    def hang_up(self) -> None:
        """Let the peers see that nothing more comes; safe while another thread exchanges."""
        nothing = os.open(os.devnull, os.O_WRONLY)
        for descriptor in tuple(self._outgoing.values()):
            os.dup2(nothing, descriptor)  # not closed: its number could become another file's
        os.close(nothing)

    def exchange(self, outgoing: Sequence[torch.Tensor], incoming: Sequence[torch.Tensor]) -> None:
        """Send `outgoing[r]` to each rank r and fill `incoming[r]` with what r sends to this rank.

        All ranks of the group must make their calls in the same order.

        Args:
            outgoing: Bytes (uint8 [n]) for each rank; the same tensor may occur several times.
            incoming: Space for the bytes from each rank, exactly as many as that rank sends.

        Raises:
            torch.distributed.DistBackendError: A rank ended, did not answer in time, or sent an
                unexpected number of bytes.
        """
        self._send(outgoing)
        incoming[self._rank].copy_(outgoing[self._rank])
        for peer in self._peers:
            self._receive(peer, incoming[peer])
        self._count += 1

    def _send(self, outgoing: Sequence[torch.Tensor]) -> None:
        places: dict[int, int] = {}
        size = 0
        for peer in self._peers:
            if id(outgoing[peer]) not in places:
                places[id(outgoing[peer])] = size
                size += -(-len(outgoing[peer]) // _ALIGNMENT) * _ALIGNMENT
        buffer = self._buffers[self._count % 2]
        buffer.reserve(size)
        written = set()
        for peer in self._peers:
            part = outgoing[peer]
            place = places[id(part)]
            if id(part) not in written:
                buffer.bytes[place : place + len(part)].copy_(part)
                written.add(id(part))
            message = (self._count, buffer.descriptor, buffer.generation, place, len(part))
            try:
                os.write(self._outgoing[peer], _MESSAGE.pack(*message))
            except BrokenPipeError:
                raise self._error(peer, "has ended") from None

    def _receive(self, peer: int, part: torch.Tensor) -> None:
        count, descriptor, generation, place, size = _MESSAGE.unpack(self._wait(peer))
        if (count, size) != (self._count, len(part)):
            raise self._error(
                peer,
                f"sends {size} bytes in exchange {count}, where {len(part)} bytes in exchange "
                f"{self._count} are expected: the ranks do not run the same program",
            )
        if not size:
            return
        key = (peer, count % 2)
        if key not in self._windows or self._windows[key][0] != generation:
            path = _path(self._processes[peer], descriptor)
            try:
                opened = os.open(path, os.O_RDWR)
            except FileNotFoundError:  # killed after it sent the message
                raise self._error(peer, "has ended") from None
            try:
                self._windows[key] = (generation, _mapped(opened))
            finally:
                os.close(opened)
        part.copy_(self._windows[key][1][place : place + size])

    def _wait(self, peer: int) -> bytes:
        """Wait for the next message of a rank."""
        pipe = self._incoming[peer]
        sleep_from = time.perf_counter() + self._spin_seconds
        while True:
            try:
                message = os.read(pipe, _MESSAGE.size)
            except BlockingIOError:
                if time.perf_counter() < sleep_from:
                    os.sched_yield()
                else:
                    self._sleep(peer)
                continue
            if not message:
                raise self._error(peer, "has ended")
            return message

    def _sleep(self, peer: int) -> None:
        poll = select.poll()
        poll.register(self._incoming[peer], select.POLLIN)
        if not poll.poll(self._timeout / timedelta(milliseconds=1)):
            raise self._error(peer, f"sent nothing for {self._timeout}")

    def _error(self, peer: int, what: str) -> dist.DistBackendError:
        return dist.DistBackendError(
            f"Rank {peer} of this group (process {self._processes[peer]}) {what}. Its own output "
            f"tells why; {fast.SWITCH}=shared_memory leaves communication to Gloo."
        )


_channels: weakref.WeakKeyDictionary[dist.ProcessGroup, Channel | None] = (
    weakref.WeakKeyDictionary()
)


def channel_of(group: dist.ProcessGroup | None) -> Channel | None:
    """The channel of a Gloo group, or None where its ranks cannot share memory.

    The first call for a group is a collective operation: every rank of the group must make it.
    """
    group = dist.group.WORLD if group is None else group
    assert group is not None, "torch.distributed is not initialized"
    if group not in _channels:
        is_gloo = dist.get_backend(group) == dist.Backend.GLOO
        _channels[group] = _connect(group) if is_gloo and group.size() > 1 else None
    return _channels[group]


def hang_up() -> None:
    """End the exchanges of all groups of this process, so that nobody waits for it any more."""
    for channel in tuple(_channels.values()):
        if channel is not None:
            channel.hang_up()


def _connect(group: dist.ProcessGroup) -> Channel | None:
    channel, failure = (
        None,
        "" if fast.enabled("shared_memory") else f"{fast.SWITCH} switches it off",
    )
    if not failure:
        has_own_core = dist.get_world_size() <= (os.cpu_count() or 1)
        try:
            channel = Channel(
                group.rank(),
                group.size(),
                timeout=group._get_backend(torch.device("cpu")).options._timeout,
                spin_seconds=_SPIN_SECONDS if has_own_core else 0.0,
            )
        except (OSError, AttributeError) as error:  # Only Linux has pipe2 and memfd_create.
            failure = str(error)
    offer = Offer(
        host=_host(),
        process=os.getpid(),
        pipes=channel.offered if channel else {},
        failure=failure,
    )
    offers = _all_gather_objects(offer, group)
    failure = next((o.failure for o in offers if o.failure), "")
    if not failure and len({o.host for o in offers}) > 1:
        failure = "its processes run on several hosts or in several containers"
    if channel and not failure:
        try:
            channel.accept(offers)
        except OSError as error:
            failure = str(error)
    # Also a barrier: after it, every rank has opened the pipes that were offered to it.
    failure = next(filter(None, _all_gather_objects(failure, group)), "")
    if channel and not failure:
        channel.start()
        weakref.finalize(group, channel.close)
        return channel
    if channel:
        channel.close()
    if group.rank() == 0:
        _warn_once(failure)
    return None


@functools.cache
def _warn_once(failure: str) -> None:
    _log.warning("Processes exchange tensors through Gloo, not shared memory: %s.", failure)


def _all_gather_objects(value: Any, group: dist.ProcessGroup) -> list[Any]:
    # Not dist.all_gather_object: Megatron may be batching all_gathers, to start them later.
    received = [[value] for _ in range(group.size())]
    for rank, cell in enumerate(received):
        dist.broadcast_object_list(cell, group=group, group_src=rank)
    return [cell[0] for cell in received]


def _host() -> tuple[str, ...]:
    """Identifies this host, and this container on it."""
    try:
        return process_space()
    except OSError:
        return ()


def _path(process: int, descriptor: int) -> str:
    return f"/proc/{process}/fd/{descriptor}"


def _mapped(descriptor: int) -> torch.Tensor:
    """All bytes of a file as a tensor that shares its memory."""
    return torch.frombuffer(mmap.mmap(descriptor, 0), dtype=torch.uint8)
