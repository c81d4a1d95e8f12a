"""A writer that is killed with SIGKILL at any moment leaves a true history."""

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

import numpy as np
import pytest

from moe_megatron.telemetry.history import RoutingHistory
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot
from moe_megatron.testing.history_writer import snapshot

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

WRITER = "moe_megatron.testing.history_writer"


@contextmanager
def writer(folder: Path, start: int, last: int) -> Iterator[tuple[subprocess.Popen, SimpleQueue]]:
    """Starts a writer; its queue receives the steps it promises."""
    command = [sys.executable, "-m", WRITER, str(folder), str(start), str(last)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    promised: SimpleQueue = SimpleQueue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.endswith("\n"):
                promised.put(int(line))

    thread = Thread(target=read)
    thread.start()
    try:
        yield process, promised
    finally:
        process.kill()
        process.wait()
        thread.join()
        process.stdout.close()


def assert_true(found: RoutingSnapshot) -> None:
    for field in fields(RoutingSnapshot):
        expected = getattr(snapshot(found.step), field.name)
        np.testing.assert_array_equal(getattr(found, field.name), expected)


def test_killed_writer_keeps_what_it_promised_and_a_resume_continues(tmp_path: Path) -> None:
    folder, rng, start = tmp_path / "history", random.Random(5), 0
    for _ in range(3):
        with writer(folder, start, 10**6) as (process, promised):
            kept = promised.get(timeout=60)
            time.sleep(rng.uniform(0.0, 0.2))
            process.kill()
            process.wait()
        while not promised.empty():
            kept = promised.get()
        history = RoutingHistory(folder)
        assert history.last_step >= kept
        found = list(history.snapshots())
        assert [s.step for s in found] == list(range(1, history.last_step + 1))
        for s in rng.sample(found, 40):
            assert_true(s)
        start = rng.choice([kept, kept - 50, rng.randrange(1, kept + 1)])  # an earlier checkpoint
    with writer(folder, start, start + 60) as (process, _):
        assert process.wait(timeout=60) == 0
    found = list(RoutingHistory(folder).snapshots())
    assert [s.step for s in found] == list(range(1, start + 61))
    for s in found:
        assert_true(s)


def test_reader_beside_a_writer_sees_only_whole_steps_and_more_and_more(tmp_path: Path) -> None:
    folder = tmp_path / "history"
    with writer(folder, 0, 10**6) as (_, promised):
        promised.get(timeout=60)
        history, seen = RoutingHistory(folder), []
        deadline = time.monotonic() + 60
        while len(set(seen)) < 10 and time.monotonic() < deadline:
            history.refresh()
            seen.append(history.last_step)
            for found in history.snapshots(max(1, history.last_step - 30)):
                assert_true(found)
    assert seen == sorted(seen)
    assert len(set(seen)) >= 10
