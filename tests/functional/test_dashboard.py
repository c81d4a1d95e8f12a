"""The dashboard beside a training that goes on, and against clients who mean it no good."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from websockets.sync.client import connect

from moe_megatron.platform.requests import ASKED
from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE, ROUTING_FILE, read_routing
from moe_megatron.testing.written_run import step_record, step_routing, write_run
from moe_megatron.webapp.access.database import open_database
from moe_megatron.webapp.access.sessions import Sessions
from moe_megatron.webapp.access.tokens import AccessTokens
from moe_megatron.webapp.frames import encode_frame, load_bytes

pytestmark = [pytest.mark.deep, pytest.mark.timeout(600)]

MOE_MEGATRON = [sys.executable, "-m", "moe_megatron"]
TRAINING = ["train", "--config", "test_tiny", "--train-iters", "100000"]


@contextmanager
def program(*words: object, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*MOE_MEGATRON, *map(str, words)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


@contextmanager
def dashboard(*words: object, cwd: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Its address, and its process."""
    with program("dashboard", *words, "--port", 0, "--no-open", cwd=cwd) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.match(r"dashboard\s+(http://\S+)", line):
                yield found[1], psutil.Process(process.pid)
                break


def fetch(url: str, cookie: str = "") -> Any:
    headers = {"Cookie": cookie} if cookie else {}
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        body = answer.read()
    return (
        body if answer.headers["content-type"] == "application/octet-stream" else json.loads(body)
    )


def wait_for(check, seconds: float = 180.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if found := check():
                return found
        except (OSError, IndexError):
            pass
        time.sleep(0.2)
    raise AssertionError("it did not come to pass")


def test_a_training_is_shown_while_it_goes_on_and_when_it_was_killed(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "live"
    with (
        dashboard(cwd=tmp_path) as (url, _),
        program(*TRAINING, "--run-dir", run, cwd=tmp_path) as training,
    ):
        [facts] = wait_for(
            lambda: [it for it in fetch(f"{url}api/runs") if it["last_step"] >= 3 and it["layers"]]
        )
        assert facts["state"] == "running"
        live = f"{url.replace('http', 'ws')}api/live?run={facts['id']}"
        with connect(live) as client:
            frames, steps, deadline = [], [], time.monotonic() + 120
            while len(steps) < 8 and time.monotonic() < deadline:
                said = client.recv(timeout=60)
                if isinstance(said, bytes):
                    frames.append(said)
                elif (message := json.loads(said))["type"] == "step":
                    steps.append(message["step"])
        assert len(steps) == 8
        assert steps == sorted(set(steps))
        for frame in frames:
            step = int.from_bytes(frame[4:8], "little")
            [snapshot] = [it for it in read_routing(run / ROUTING_FILE) if it.step == step]
            assert frame == encode_frame(snapshot.tokens_per_expert, step, step)
        launcher = psutil.Process(training.pid)
        for process in [launcher, *launcher.children(recursive=True)]:
            process.kill()
        wait_for(lambda: fetch(f"{url}api/runs")[0]["state"] != "running", 60)
        about = fetch(f"{url}api/runs/{facts['id']}")
        snapshots = list(read_routing(run / ROUTING_FILE))
        assert about["last_step"] >= snapshots[-1].step
        whole = fetch(f"{url}api/runs/{facts['id']}/matrix?first=1&last={snapshots[-1].step}")
        summed = sum(it.tokens_per_expert for it in snapshots)
        assert whole[16:] == load_bytes(summed).tobytes()
        assert "num_experts" in about["config"]
        for call in ("layers", "series", "moves", "ranks", "cost", "flow", "events", "log"):
            assert fetch(f"{url}api/runs/{facts['id']}/{call}")
        assert fetch(f"{url}api/runs/{facts['id']}/log")["lines"]


def random_request(rng: random.Random) -> bytes:
    """A request that no browser makes: a part of a good one, changed, or bytes."""
    good = rng.choice(
        [
            b"GET /api/runs HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
            b"GET /api/runs/ID/matrix?first=1&last=2 HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"POST /api/runs HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 5\r\n\r\nabcde",
            b"GET /api/live?run=ID HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            b"POST /api/login HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Requested-With: moe-megatron\r\n"
            b'Content-Length: 14\r\n\r\n{"token": "a"}',
            b"POST /api/runs/ID/ask HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            b"X-Requested-With: moe-megatron\r\n"
            b'Cookie: moe_megatron_0=a; b\r\nContent-Length: 16\r\n\r\n{"what": "stop"}',
        ]
    )
    kind = rng.randrange(6)
    if kind == 0:
        return rng.randbytes(rng.randrange(1, 2000))
    if kind == 1:
        return good[: rng.randrange(len(good))]
    if kind == 2:
        at = rng.randrange(len(good))
        return good[:at] + rng.randbytes(rng.randrange(1, 9)) + good[at + 1 :]
    if kind == 3:
        path = "".join(rng.choice("./%\\~:;?&=#@\x00\xffab0") for _ in range(rng.randrange(200)))
        return f"GET /api/{path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode("latin-1")
    if kind == 4:
        return b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"a: b\r\n" * rng.randrange(20_000)
    return good + rng.randbytes(rng.randrange(1, 3000))  # frames that are none, on a WebSocket


@pytest.mark.parametrize("locked", [False, True])
def test_500_malformed_requests_leave_it_as_it_was(tmp_path: Path, locked: bool) -> None:
    run = write_run(tmp_path / "runs" / "a", 20)
    for name in (METRICS_FILE, ROUTING_FILE):
        os.utime(run / name, (1e9, 1e9))  # long over
    (run / ASKED).mkdir()
    rng = random.Random(16)
    words, session = [], ""
    if locked:
        words = ["--database", tmp_path / "access.db"]
        engine = open_database(str(tmp_path / "access.db"), create=True)
        AccessTokens(engine).add("ada", "operator")
        session = Sessions(engine).begin(AccessTokens(engine).all()[0])
    with dashboard(*words, cwd=tmp_path) as (url, process):
        port = int(url.rstrip("/").rpartition(":")[2])
        cookie = f"moe_megatron_{port}={session}" if locked else ""
        expected = fetch(f"{url}api/runs", cookie)
        name = expected[0]["id"].encode()
        before = process.memory_info().rss
        for _ in range(500):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
                client.settimeout(0.2)
                try:
                    client.sendall(random_request(rng).replace(b"ID", name))
                    answer = client.recv(65536)
                except OSError:
                    continue
                status = re.match(rb"HTTP/1.1 (\d+)", answer)
                assert not answer or (status and int(status[1]) < 500), answer[:300]
                assert not locked or (b"last_step" not in answer and b"MOE1" not in answer)
        assert fetch(f"{url}api/runs", cookie) == expected
        assert list((run / ASKED).iterdir()) == []
        assert process.memory_info().rss - before < 100 * 2**20


def test_slow_clients_get_the_latest_frame_and_cost_no_memory(tmp_path: Path) -> None:
    """200 browsers that read nothing, and one that does, on a model of 61 layers of 256 experts."""
    layers = tuple(range(1, 62))
    run = write_run(tmp_path / "runs" / "a", 1, history=0, layers=layers, num_experts=256)
    with dashboard(cwd=tmp_path) as (url, process), ExitStack() as open_ones:
        [facts] = fetch(f"{url}api/runs")
        live = f"{url.replace('http', 'ws')}api/live?run={facts['id']}"
        # A kernel's buffer may hold megabytes for each: they shall not.
        for _ in range(200):
            slow = socket.create_connection(("127.0.0.1", int(url.rstrip("/").rpartition(":")[2])))
            open_ones.enter_context(slow)
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.sendall(
                f"GET /api/live?run={facts['id']} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
            )
        quick = open_ones.enter_context(connect(live))
        before = process.memory_info().rss
        seen = 0
        for step in range(2, 302):
            for name, data in (
                (METRICS_FILE, step_record(step)),
                (ROUTING_FILE, step_routing(step, layers, 256)),
            ):
                with (run / name).open("a") as file:
                    file.write(json.dumps(data.to_json_dict()) + "\n")
            time.sleep(0.02)
        deadline = time.monotonic() + 200
        while seen < 301 and time.monotonic() < deadline:
            said = quick.recv(timeout=150)
            if isinstance(said, bytes):
                seen = int.from_bytes(said[4:8], "little")
        assert seen == 301
        # 300 frames for 200 clients would be 940 MB.
        assert process.memory_info().rss - before < 200 * 2**20
        assert fetch(f"{url}api/runs")[0]["last_step"] == 301


def test_ctrl_c_ends_it_and_the_run_is_untouched(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "a", 5)
    before = {it: it.stat().st_mtime_ns for it in run.rglob("*")}
    with dashboard(run, cwd=tmp_path) as (url, process):
        [facts] = fetch(f"{url}api/runs")
        fetch(f"{url}api/runs/{facts['id']}/layers")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) in (0, None)
    assert {it: it.stat().st_mtime_ns for it in run.rglob("*")} == before


def test_help_loads_no_web_server(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom moe_megatron.cli.main import main\n"
        "try:\n    main(['dashboard', '--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'fastapi', 'uvicorn', 'websockets', 'torch'} & set(sys.modules)))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.splitlines()[-1] == "[]"


def test_it_ends_in_order_with_its_input(tmp_path: Path) -> None:
    words = [*MOE_MEGATRON, "dashboard", tmp_path, "--port", "0", "--until-eof"]
    answer = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    assert answer.returncode == 0
    assert answer.stdout.splitlines()[-1] == "stopped"
