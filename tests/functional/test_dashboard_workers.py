"""A dashboard of several processes and a real Redis server: processes and the server are killed.

Whoever watches goes on watching, and nothing is left when the dashboard ends.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE, ROUTING_FILE
from moe_megatron.testing.redis_server import PASSWORD, RedisServer, program, redis_server
from moe_megatron.testing.written_run import step_record, step_routing, write_run
from moe_megatron.webapp.frames import encode_frame
from moe_megatron.webapp.run_facts import run_id

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def until(check: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@dataclass
class Dashboard:
    """A dashboard of two workers, the run that it shows, and how far that is."""

    process: "subprocess.Popen[str]"
    url: str
    run: Path
    step: int = 5

    @property
    def workers(self) -> list[psutil.Process]:
        found = psutil.Process(self.process.pid).children()
        return [it for it in found if it.status() != psutil.STATUS_ZOMBIE]

    def clients_of(self, worker: psutil.Process) -> int:
        port = int(self.url.rstrip("/").rpartition(":")[2])
        found = worker.net_connections("tcp")
        return sum(it.status == "ESTABLISHED" and it.laddr.port == port for it in found)

    def watch(self, until_then: ExitStack) -> ClientConnection:
        address = self.url.replace("http", "ws") + f"api/live?run={run_id(self.run)}"
        return until_then.enter_context(connect(address))

    def goes_on(self, clients: list[ClientConnection]) -> None:
        """The run makes a step, and each client gets its frame."""
        self.step += 1
        for name, of in ((METRICS_FILE, step_record), (ROUTING_FILE, step_routing)):
            with (self.run / name).open("a") as file:
                file.write(json.dumps(of(self.step).to_json_dict()) + "\n")
        wanted = encode_frame(step_routing(self.step).tokens_per_expert, self.step, self.step)
        for client in clients:
            while client.recv(timeout=30) != wanted:
                pass


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    if program() is None:
        pytest.skip("needs Redis: apt-get install -y redis-server")
    with redis_server() as server:
        yield server


@pytest.fixture
def dashboard(redis: RedisServer, tmp_path: Path) -> Iterator[Dashboard]:
    run = write_run(tmp_path / "run", 5, history=0)
    words = [sys.executable, "-m", "moe_megatron", "dashboard", str(tmp_path), "--port", "0"]
    words += ["--no-open", "--workers", "2", "--redis", redis.address]
    process = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=(tmp_path / "errors").open("wb"),
        env=os.environ | {"REDIS_PASSWORD": PASSWORD},
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    with process:
        yield Dashboard(process, process.stdout.readline().split()[1], run)
        process.kill()


def hears(client: ClientConnection) -> bool:
    """Whether its worker is there."""
    try:
        while True:
            client.recv(timeout=0.2)
    except TimeoutError:
        return True
    except ConnectionClosed:
        return False


@pytest.mark.deep
def test_clients_of_all_workers_get_the_same_frames_whoever_is_killed(
    dashboard: Dashboard, redis: RedisServer, tmp_path: Path
) -> None:
    def said() -> str:
        return (tmp_path / "errors").read_text()

    with ExitStack() as stack:
        clients = [dashboard.watch(stack)]
        until(lambda: len(dashboard.workers) == 2)
        # The system chooses who takes a connection; both get some as soon as both are there.
        until(lambda: all(it.cpu_times().user > 0.5 for it in dashboard.workers))
        while len(clients) < 8 or min(map(dashboard.clients_of, dashboard.workers)) < 2:
            clients.append(dashboard.watch(stack))
            assert len(clients) < 200
        dashboard.goes_on(clients)
        redis.stop()
        dashboard.goes_on(clients)
        redis.start()
        until(lambda: "answers again: one worker reads for all" in said())
        dashboard.goes_on(clients)
        for killed in dashboard.workers:  # one of them reads
            before = {it.pid for it in dashboard.workers}
            killed.kill()
            until(lambda known=before: bool({it.pid for it in dashboard.workers} - known))
            left = [it for it in clients if hears(it)]
            assert len(left) < len(clients)
            clients = [*left, dashboard.watch(stack)]
            dashboard.goes_on(clients)
        assert "horse" not in " ".join(dashboard.workers[0].cmdline())
    assert "this worker reads the runs by itself until it does" in said()
    assert PASSWORD not in said()


@pytest.mark.parametrize(
    "how", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.deep)]
)
def test_no_worker_outlives_the_dashboard(dashboard: Dashboard, how: signal.Signals) -> None:
    until(lambda: len(dashboard.workers) == 2)
    workers = dashboard.workers
    with ExitStack() as stack:
        dashboard.watch(stack).recv(timeout=30)
        dashboard.process.send_signal(how)
        assert dashboard.process.wait(30) == (0 if how == signal.SIGINT else -how)
        psutil.wait_procs(workers, 30)
    assert not [it for it in workers if it.is_running() and it.status() != psutil.STATUS_ZOMBIE]
