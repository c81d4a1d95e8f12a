"""The dashboard over HTTP: what it answers, whom it refuses, and how it says what is wrong."""

import json
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from moe_megatron.errors import ConfigError
from moe_megatron.testing.written_run import write_run
from moe_megatron.webapp.app import make_app
from moe_megatron.webapp.guards import CONTENT_SECURITY_POLICY
from moe_megatron.webapp.run_facts import run_id
from moe_megatron.webapp.run_list import RunList
from moe_megatron.webapp.serving import DashboardOptions, DashboardServer


def test_runs_and_their_calls_are_answered(served) -> None:
    status, body, headers = served.get("api/runs")
    assert status == 200
    [run] = json.loads(body)
    assert (run["id"], run["name"], run["layers"], run["experts"]) == (
        served.id,
        "run",
        [2, 3, 5],
        8,
    )
    assert headers["cache-control"] == "no-store"
    status, body, headers = served.get(f"api/runs/{served.id}/matrix?first=3&last=3")
    assert (status, body[:4], len(body)) == (200, b"MOE1", 16 + 24)
    assert headers["content-type"] == "application/octet-stream"
    status, body, _ = served.get(f"api/compare?runs={served.id},{served.id}&columns=4")
    assert [it["id"] for it in json.loads(body)["runs"]] == [served.id] * 2


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("api/runs/ffffffffff", 404, "no run with this id"),
        ("api/runs/..%2f..%2fetc/matrix", 404, "nothing at this address"),
        ("api/runs/%2e%2e/log", 404, "no run with this id"),
        ("api/runs/RUN/secrets", 404, "there is no such call; there are about"),
        ("api/runs/RUN/matrix?first=0", 400, "first must be a whole number"),
        ("api/runs/RUN/matrix?first=%ff%00", 400, "first must be a whole number"),
        ("api/compare", 400, "runs must name 1 to 8 ids"),
        ("api/nothing", 404, "nothing at this address"),
        ("docs", 404, "nothing at this address"),
        ("openapi.json", 404, "nothing at this address"),
        ("../../etc/passwd", 404, "nothing at this address"),
    ],
)
def test_errors_are_one_paragraph(served, path: str, status: int, said: str) -> None:
    found, body, _ = served.get(path.replace("RUN", served.id))
    error = json.loads(body)["error"]
    assert (found, said in error) == (status, True), error
    assert "\n" not in error
    assert str(served.folder) not in error


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "127.0.0.1:1234"}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "[::1]:80"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:8080"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_only_this_server_s_own_names_and_pages_are_served(served, headers, status) -> None:
    found, body, _ = served.get("api/runs", **headers)
    assert found == status
    if status == 403:
        assert "dashboard" in json.loads(body)["error"]


@pytest.mark.parametrize("path", ["", "api/runs", "api/nothing", "zzz"])
def test_every_answer_carries_the_headers(served, path: str) -> None:
    _, _, headers = served.get(path)
    assert headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert "script-src 'self';" in CONTENT_SECURITY_POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "server" not in headers


def test_names_of_runs_are_data_in_the_plain_page_and_in_json(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>&'\""
    write_run(tmp_path / name.replace("/", "_"), 2, history=0)
    # Of a checkout in which the page is not built.
    app = make_app(RunList([tmp_path]), page=tmp_path / "page")
    client = TestClient(app, base_url="http://127.0.0.1")
    plain = client.get("/").text
    assert "<script" not in plain
    assert "&lt;script&gt;alert(1)&lt;_script&gt;&amp;" in plain
    assert "make ui" in plain
    [run] = client.get("/api/runs").json()
    assert run["name"] == name.replace("/", "_")


def test_the_built_page_is_served_and_nothing_beside_it(tmp_path: Path) -> None:
    page = tmp_path / "page"
    (page / "assets").mkdir(parents=True)
    (page / "index.html").write_text("<title>built</title>")
    (page / "assets" / "a-1f.js").write_text("1")
    (tmp_path / "secret").write_text("no")
    client = TestClient(make_app(RunList([]), page=page), base_url="http://127.0.0.1")
    assert "built" in client.get("/").text
    kept = client.get("/assets/a-1f.js")
    assert (kept.text, "immutable" in kept.headers["cache-control"]) == ("1", True)
    for path in ("/assets/none.js", "/..%2fsecret", "/../secret", "/api/none"):
        answer = client.get(path)
        assert (answer.status_code, "error" in answer.json()) == (404, True), path


def test_a_port_that_is_taken_says_what_to_do(served, tmp_path: Path) -> None:
    port = int(served.server.url.rstrip("/").rpartition(":")[2])
    with pytest.raises(ConfigError, match=f"port {port}.*give a free port with --port"):
        DashboardServer(DashboardOptions(folders=[tmp_path], port=port))
    with pytest.raises(ConfigError, match="0 \\(a free port\\) to 65535, not 70000"):
        DashboardServer(DashboardOptions(folders=[tmp_path], port=70000))


def test_ids_say_nothing_of_the_path(tmp_path: Path) -> None:
    assert len(run_id(tmp_path)) == 10
    assert run_id(tmp_path) != run_id(tmp_path / "a")
