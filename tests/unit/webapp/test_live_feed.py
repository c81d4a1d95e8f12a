"""Live frames: hello, the latest step, events and states; nobody else's pages; nobody, no work."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from moe_megatron.telemetry.journal import note
from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE, ROUTING_FILE
from moe_megatron.testing.written_run import step_record, step_routing
from moe_megatron.webapp.frames import encode_frame
from moe_megatron.webapp.news import NewsReader


def heard(client: ClientConnection, seconds: float = 10.0) -> Iterator[Any]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = client.recv(timeout=seconds)
        yield found if isinstance(found, bytes) else json.loads(found)


def until(client: ClientConnection, wanted) -> Any:
    return next(it for it in heard(client) if wanted(it))


def of_kind(kind: str):
    return lambda it: isinstance(it, dict) and it["type"] == kind


def add_step(run, step: int) -> None:
    for name, data in ((METRICS_FILE, step_record(step)), (ROUTING_FILE, step_routing(step))):
        with (run / name).open("a") as file:
            file.write(json.dumps(data.to_json_dict()) + "\n")


def frame_of(step: int) -> bytes:
    return encode_frame(step_routing(step).tokens_per_expert, step, step)


def test_a_watcher_hears_of_the_last_step_and_of_those_that_follow(served) -> None:
    with connect(served.live) as client:
        hello = next(heard(client))
        last = hello["last_step"]
        assert (hello["type"], hello["first_step"], hello["hz"]) == ("hello", 1, 10.0)
        assert until(client, lambda it: isinstance(it, bytes)) == frame_of(last)
        step = until(client, of_kind("step"))
        assert (step["step"], step["loss"]) == (last, 9.0 / last)
        assert until(client, of_kind("state"))["state"] == "running"
        add_step(served.run, last + 1)
        assert until(client, lambda it: isinstance(it, bytes)) == frame_of(last + 1)
        step = until(client, of_kind("step"))
        assert (step["step"], step["tokens_per_second"]) == (last + 1, 2000.0)
        routing = step_routing(last + 1)
        assert step["max_over_mean"] == pytest.approx(routing.imbalance.tolist(), rel=1e-5)
        note(served.run, "masked", step=last, layer=2, expert=0, reason="asked")
        event = until(client, of_kind("event"))
        assert (event["kind"], event["level"], event["step"]) == ("masked", "warning", last)


@pytest.mark.deep
def test_paused_nothing_is_sent_and_resumed_the_latest_is(served) -> None:
    with connect(served.live) as client:
        last = until(client, of_kind("step"))["step"]
        until(client, of_kind("state"))
        client.send('{"type": "pause"}')
        time.sleep(0.3)
        add_step(served.run, last + 1)
        add_step(served.run, last + 2)
        with pytest.raises(TimeoutError):
            client.recv(timeout=0.5)
        client.send('{"type": "resume"}')
        assert until(client, lambda it: isinstance(it, bytes)) == frame_of(last + 2)


def test_another_run_can_be_watched_and_one_that_is_not_there_is_refused(served) -> None:
    with connect(served.live) as client:
        next(heard(client))
        client.send('{"type": "watch", "run": "../../etc"}')
        assert "no run with this id" in until(client, of_kind("error"))["error"]
        client.send(json.dumps({"type": "watch", "run": served.id}))
        assert until(client, of_kind("hello"))["first_step"] == 1


@pytest.mark.parametrize("said", ["{", "[]", '"x"', "null", '{"type": "order"}', b"\x00\xff", ""])
def test_what_is_no_message_closes_the_connection(served, said) -> None:
    with connect(served.live) as client:
        client.send(said)
        with pytest.raises(ConnectionClosed) as closed:
            for _ in heard(client):
                pass
        assert closed.value.rcvd.code == 1003


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1"])
def test_a_page_of_another_server_cannot_watch(served, origin: str) -> None:
    with pytest.raises(InvalidStatus), connect(served.live, origin=origin):
        pass


def test_its_own_page_can(served) -> None:
    with connect(served.live, origin=served.server.url.rstrip("/")) as client:
        assert next(heard(client))["type"] == "hello"


@pytest.mark.deep
def test_without_watchers_no_run_is_looked_at(served, monkeypatch: pytest.MonkeyPatch) -> None:
    looks, look = [], NewsReader.look
    monkeypatch.setattr(NewsReader, "look", lambda *its: (looks.append(1), look(*its))[1])
    with connect(served.live) as client:
        until(client, of_kind("state"))
    time.sleep(0.5)
    before = len(looks)
    assert before > 0
    time.sleep(0.5)
    assert len(looks) == before
