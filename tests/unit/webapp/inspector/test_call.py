"""POST /api/inspect: which models can be reached, and what is refused."""

import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from moe_megatron.testing.written_run import write_run
from moe_megatron.webapp.app import make_app
from moe_megatron.webapp.inspector.inspector import MOST_CHARACTERS, Inspector
from moe_megatron.webapp.run_facts import run_id
from moe_megatron.webapp.run_list import RunList
from moe_megatron.webapp.serving import DashboardOptions, DashboardServer
from tests.unit.webapp.inspector.test_inspector import command

MEANT = {"X-Requested-With": "moe-megatron"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name in ("a", "without"):
        write_run(folder / name, 3)
    for step in (1, 3):
        (folder / "a" / "checkpoints" / f"iter_{step:07d}").mkdir(parents=True)
    (folder.parent / "exported").mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    inspector = Inspector(command)
    app = make_app(
        RunList([folder]),
        inspector=inspector,
        models=[folder.parent / "exported"],
        page=folder / "page",
    )
    yield TestClient(app, base_url="http://127.0.0.1")
    inspector.close()


def asked(client: TestClient, **fields: Any) -> tuple[int, Any]:
    answer = client.post("/api/inspect", json={"text": "one", **fields}, headers=MEANT)
    return answer.status_code, answer.json()


def test_a_checkpoint_and_a_given_folder_are_asked(client: TestClient, folder: Path) -> None:
    run = run_id(folder / "a")
    for step, found in ((1, "iter_0000001"), (3, "iter_0000003"), (None, "iter_0000003")):
        status, answer = asked(client, run=run, checkpoint=step)
        assert (status, Path(answer["folder"]).name) == (200, found)
    [model] = client.get("/api/models").json()
    assert model["name"] == "exported"
    status, answer = asked(client, model=model["id"])
    assert (status, answer["folder"]) == (200, str(folder.parent / "exported"))


def test_a_run_says_whether_it_can_be_asked(folder: Path) -> None:
    for models, name, can in (([], "a", True), ([], "without", False), ([folder], "without", True)):
        app = make_app(RunList([folder]), models=models)
        about = TestClient(app, base_url="http://127.0.0.1").get(
            f"/api/runs/{run_id(folder / name)}"
        )
        assert about.json()["has"]["inspector"] is can


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        ({}, 400, "run must be the id of a run, or model the id of a model"),
        ({"run": 3}, 400, "run must be the id"),
        ({"run": "ffffffffff"}, 404, "no run with this id"),
        ({"run": "../a"}, 404, "no run with this id"),
        ({"run": "/etc"}, 404, "no run with this id"),
        ({"run": "WITHOUT"}, 400, "no checkpoint to ask; --save-interval N"),
        ({"run": "RUN", "checkpoint": 2}, 400, "no checkpoint of step 2; it has one of step 1, 3"),
        ({"run": "RUN", "checkpoint": True}, 400, "no checkpoint of step True"),
        ({"run": "RUN", "checkpoint": "../../.."}, 400, "no checkpoint of step '../../..'"),
        ({"run": "RUN", "checkpoint": ["x" * 999]}, 400, "no checkpoint of step"),
        ({"model": "/etc"}, 400, "no model with this id; take one from /api/models"),
        ({"model": ["exported"]}, 400, "no model with this id"),
        ({"run": "RUN", "text": None}, 400, "text must be the text"),
        ({"run": "RUN", "text": ["a"]}, 400, "text must be the text"),
        ({"run": "RUN", "text": ""}, 400, "and this has 0; give another one"),
        ({"run": "RUN", "text": "x" * (MOST_CHARACTERS + 1)}, 400, "this has 20,001; give"),
        ({"run": "RUN", "text": "x" * (13 * MOST_CHARACTERS)}, 413, "larger than 241,024 bytes"),
        ({"run": "RUN", "text": "error"}, 400, "a.bin and iter_0000003 are damaged"),
        ({"run": "RUN", "text": "die"}, 503, "was killed"),
    ],
)
def test_what_is_wrong_is_one_paragraph(
    client: TestClient, folder: Path, fields: dict[str, Any], status: int, said: str
) -> None:
    ids = {"RUN": run_id(folder / "a"), "WITHOUT": run_id(folder / "without")}
    if isinstance(run := fields.get("run"), str):
        fields = {**fields, "run": ids.get(run, run)}
    found, answer = asked(client, **fields)
    assert (found, said in answer["error"]) == (status, True), answer
    assert "\n" not in answer["error"]
    assert str(folder) not in answer["error"]
    assert len(answer["error"]) < 600


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"text"', b"\xff", b'{"text": "\\ud800"}'])
def test_what_is_no_object_is_refused(client: TestClient, body: bytes) -> None:
    answer = client.post("/api/inspect", content=body, headers=MEANT)
    assert (answer.status_code, "JSON object" in answer.json()["error"]) == (400, True)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {**MEANT, "Origin": "http://evil.example"},
        {**MEANT, "Host": "evil.example"},
        {"Content-Type": "application/x-www-form-urlencoded"},
    ],
)
def test_pages_of_others_reach_no_model(client: TestClient, folder: Path, headers: Any) -> None:
    body = json.dumps({"run": run_id(folder / "a"), "text": "one"})
    answer = client.post("/api/inspect", content=body, headers=headers)
    assert answer.status_code == 403
    assert client.get("/api/inspect").status_code == 404


@pytest.mark.deep
def test_the_server_ends_while_a_model_is_asked(folder: Path) -> None:
    with DashboardServer(DashboardOptions(folders=[folder], port=0)) as server:
        server.inspector._command = command
        body = json.dumps({"run": run_id(folder / "a"), "text": "wait"}).encode()
        request = urllib.request.Request(f"{server.url}api/inspect", body, MEANT)
        failed: list[Exception] = []

        def ask() -> None:
            try:
                urllib.request.urlopen(request, timeout=60)
            except OSError as error:
                failed.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        while server.inspector.process is None:
            time.sleep(0.01)
    assert server._thread is not None
    assert not server._thread.is_alive()
    asking.join(10)
    assert len(failed) == 1
