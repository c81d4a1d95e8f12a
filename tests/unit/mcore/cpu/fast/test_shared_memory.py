"""Exchanges through shared memory: between channels of one process, and of processes that die.

Channels do not care which process holds them, so most tests join several in this one, each in its
own thread.
"""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from moe_megatron.mcore.cpu.fast import SWITCH, shared_memory
from moe_megatron.mcore.cpu.fast.shared_memory import Channel, Offer, channel_of
from moe_megatron.testing.distributed import start_ranks

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")


def join(size: int, timeout: float = 20.0, spin: float = 0.0) -> list[Channel]:
    """Connected channels of as many ranks."""
    channels = [
        Channel(rank, size, timeout=timedelta(seconds=timeout), spin_seconds=spin)
        for rank in range(size)
    ]
    offers = [
        Offer(host=(), process=os.getpid(), pipes=channel.offered, failure="")
        for channel in channels
    ]
    for channel in channels:
        channel.accept(offers)
    for channel in channels:
        channel.start()
    return channels


@pytest.fixture
def joined() -> Iterator[Callable[..., list[Channel]]]:
    """Joins channels and closes them after the test."""
    made: list[Channel] = []

    def make(*args: float, **kwargs: float) -> list[Channel]:
        made.extend(channels := join(*args, **kwargs))  # type: ignore[arg-type]
        return channels

    yield make
    for channel in made:
        channel.close()


def bytes_of(size: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    ("size", "spin"),
    [
        *((2, 0.0), (2, 1e-3), (5, 1e-3)),
        *(pytest.param(*it, marks=pytest.mark.deep) for it in ((3, 0.0), (3, 1e-3), (5, 0.0))),
    ],
)
def test_exchange_of_any_sizes_gives_every_rank_what_was_meant_for_it(
    size: int, spin: float, joined: Callable[..., list[Channel]]
) -> None:
    random.seed(size)
    # Empty and growing parts, and sizes that no alignment divides.
    choices = (0, 1, 7, 64, 1000, 300_001, 3_000_000)
    plan = [[[random.choice(choices) for _ in range(size)] for _ in range(size)] for _ in range(15)]

    def run(rank: int, channel: Channel) -> int:
        equal = 0
        for number, sizes in enumerate(plan):
            outgoing = [bytes_of(n, number + to) for to, n in enumerate(sizes[rank])]
            incoming = [torch.empty(sizes[r][rank], dtype=torch.uint8) for r in range(size)]
            channel.exchange(outgoing, incoming)
            expected = [bytes_of(sizes[r][rank], number + rank) for r in range(size)]
            equal += all(map(torch.equal, incoming, expected))
        return equal

    with ThreadPoolExecutor(size) as pool:
        assert list(pool.map(run, range(size), joined(size, spin=spin))) == [len(plan)] * size


def test_fast_sender_waits_before_it_overwrites_what_is_still_read(
    joined: Callable[..., list[Channel]],
) -> None:
    first, second = joined(2)
    nothing = [torch.empty(0, dtype=torch.uint8)] * 2
    values = [torch.full((100,), n, dtype=torch.uint8) for n in range(6)]
    got: list[int] = []

    def send() -> None:
        for value in values:
            first.exchange([nothing[0], value], nothing)

    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(send)
        for _ in values:
            time.sleep(0.02)
            part = torch.empty(100, dtype=torch.uint8)
            second.exchange(nothing, [part, nothing[1]])
            assert part.unique().numel() == 1
            got.append(int(part[0]))
        sent.result()
    assert got == list(range(6))


def test_one_tensor_for_all_is_written_once(joined: Callable[..., list[Channel]]) -> None:
    channels = joined(4)
    parts = [bytes_of(1_000_000, rank) for rank in range(4)]
    received = [[torch.empty_like(part) for part in parts] for _ in channels]

    def run(rank: int) -> None:
        channels[rank].exchange([parts[rank]] * 4, received[rank])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))
    for row in received:
        assert all(map(torch.equal, row, parts))
    assert len(channels[0]._buffers[0].bytes) == 2**20


def test_rank_that_ended_is_an_error_that_names_it(joined: Callable[..., list[Channel]]) -> None:
    first, second = joined(2)
    second.close()
    part = [torch.zeros(8, dtype=torch.uint8)] * 2
    with pytest.raises(dist.DistBackendError, match=r"Rank 1 of this group .* has ended\. Its own"):
        first.exchange(part, part)


def test_rank_that_ends_after_it_sent_is_an_error_that_names_it(
    joined: Callable[..., list[Channel]],
) -> None:
    first, second = joined(2)
    part = [torch.zeros(8, dtype=torch.uint8)] * 2
    for channel in (first, second):
        channel._send(part)
    second.close()  # before the other has looked at its memory
    with pytest.raises(dist.DistBackendError, match=r"Rank 1 of this group .* has ended\. Its own"):
        first._receive(1, part[1])


def test_rank_that_ends_while_another_sleeps_wakes_it(
    joined: Callable[..., list[Channel]],
) -> None:
    first, second = joined(2)
    part = [torch.zeros(8, dtype=torch.uint8)] * 2
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(first.exchange, part, part)
        time.sleep(0.2)
        assert not waiting.done()
        second.close()
        with pytest.raises(dist.DistBackendError, match="has ended"):
            waiting.result(timeout=10)


def test_rank_that_never_comes_is_an_error_after_the_time_out(
    joined: Callable[..., list[Channel]],
) -> None:
    first, _ = joined(2, timeout=0.1)
    part = [torch.zeros(8, dtype=torch.uint8)] * 2
    with pytest.raises(dist.DistBackendError, match=r"sent nothing for 0:00:00\.1"):
        first.exchange(part, part)


def test_other_number_of_bytes_than_expected_is_an_error(
    joined: Callable[..., list[Channel]],
) -> None:
    first, second = joined(2)
    three, four = (torch.zeros(n, dtype=torch.uint8) for n in (3, 4))
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(second.exchange, [three, three], [four, three])
        with pytest.raises(dist.DistBackendError, match=r"sends 3 bytes .* where 4 bytes"):
            first.exchange([four, four], [four, four])
        other.result()


def test_closed_channels_leave_no_descriptor_and_no_mapping() -> None:
    def held() -> tuple[int, int]:
        maps = Path("/proc/self/maps").read_text()
        return len(os.listdir("/proc/self/fd")), maps.count("memfd:moe_megatron")

    before = held()
    channels = join(2)
    parts = [bytes_of(3_000_000, rank) for rank in range(2)]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            list(pool.map(lambda c: c.exchange(parts, [p.clone() for p in parts]), channels))
    assert held() > before
    for channel in channels:
        channel.close()
    assert held() == before


def die() -> None:
    """Rank 1 is killed between two exchanges."""
    dist.init_process_group("gloo")
    channel = channel_of(None)
    assert channel is not None
    part = torch.zeros(8, dtype=torch.uint8)
    channel.exchange([part, part], [part.clone(), part.clone()])
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    channel.exchange([part, part], [part.clone(), part.clone()])


def connect() -> str:
    """Two ranks that may be told that they are of different containers."""
    dist.init_process_group("gloo")
    place = os.environ.get("PLACE")
    if place:
        shared_memory._host = lambda: (place,)
    found = "channel" if channel_of(None) else "gloo"
    dist.barrier()
    dist.destroy_process_group()
    return found


@pytest.mark.distributed
def test_killed_process_ends_the_others_and_leaves_nothing() -> None:
    before = set(os.listdir("/dev/shm"))
    with start_ranks(die) as ranks:
        survivor, killed = ranks.wait(60)
    assert killed.exit_code == -signal.SIGKILL
    assert (survivor.exit_code, survivor.was_ended) == (1, False)
    assert f"Rank 1 of this group (process {killed.process}) has ended" in survivor.output
    assert not [name for name in set(os.listdir("/dev/shm")) - before if "moe" in name]


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"PLACE": "container {rank}"}, "its processes run on several hosts or in several"),
        # On one rank only: they must agree all the same.
        ({SWITCH: "{rank}"}, f"{SWITCH} switches it off"),
    ],
)
def test_ranks_that_share_no_memory_use_gloo_and_say_why_once(
    environment: dict[str, str], reason: str
) -> None:
    with start_ranks(connect, environment=environment) as ranks:
        ends = ranks.wait(60)
    assert [end.result for end in ends] == ["gloo", "gloo"]
    assert [end.output.count(reason) for end in ends] == [1, 0]
