"""The server that forks ranks: when it refuses, and when it ends."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from moe_megatron.testing.fork_server import ForkServer
from moe_megatron.testing.rank import Task

pytestmark = pytest.mark.distributed

ORPHAN = """
import os, sys, time
from pathlib import Path
from tests.unit.testing import test_fork_server as tests
from moe_megatron.testing.fork_server import ForkServer
print(ForkServer(()).fork(tests.task(Path(sys.argv[1]))), flush=True)
time.sleep(100)
"""


def sleep() -> None:
    time.sleep(100)


def task(folder: Path) -> Task:
    return Task.of(
        sleep,
        (),
        result=str(folder / "result"),
        output=str(folder / "output"),
        directory=str(folder),
        environment={},
        path=sys.path,
    )


@contextmanager
def server(*preloaded: str) -> Iterator[ForkServer]:
    server = ForkServer(preloaded)
    try:
        yield server
    finally:
        server.close()


def test_rank_with_the_id_of_an_earlier_one_has_not_ended(tmp_path: Path) -> None:
    with server() as ours:
        first = ours.fork(task(tmp_path))
        ours._ended.update(dict.fromkeys(range(first, first + 2_000), 0))  # ids come in this order
        second = ours.fork(task(tmp_path))
        assert first < second < first + 2_000
        assert ours.exit_code(second) is None


def test_rank_ends_with_the_server_that_forked_it(
    tmp_path: Path, wait_until_gone: Callable[..., None]
) -> None:
    with server() as ours:
        process = ours.fork(task(tmp_path))
        assert ours.exit_code(process) is None
        assert psutil.pid_exists(process)
    assert not ours.is_usable
    wait_until_gone(process)


def test_rank_ends_with_the_tests_however_they_end(
    tmp_path: Path, wait_until_gone: Callable[..., None]
) -> None:
    tests = subprocess.Popen(
        [sys.executable, "-c", ORPHAN, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert tests.stdout is not None
    process = int(tests.stdout.readline())
    assert psutil.pid_exists(process)
    tests.kill()
    tests.communicate()
    wait_until_gone(process)


def test_module_that_starts_a_thread_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "busy_module.py").write_text(
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(100,), daemon=True).start()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    refused = r"the fork server has ended:(?s:.*)importing busy_module starts threads"
    with server("busy_module") as ours, pytest.raises(RuntimeError, match=refused):
        ours.fork(task(tmp_path))


def test_module_that_is_not_there_is_named(tmp_path: Path) -> None:
    missing = r"the fork server has ended:(?s:.*)No module named 'no_such_module'"
    with server("no_such_module") as ours, pytest.raises(RuntimeError, match=missing):
        ours.fork(task(tmp_path))
