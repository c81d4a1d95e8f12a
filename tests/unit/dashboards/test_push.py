"""Sending dashboards to a server that answers as Grafana's two HTTP APIs are documented to.

It is our server, so these tests hold what we send and how we take answers, not what a Grafana
makes of it.
"""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from moe_megatron.cli.main import main
from moe_megatron.dashboards.artifacts import dashboard_json
from moe_megatron.dashboards.push import Grafana
from moe_megatron.errors import BackendUnavailableError, ConfigError

TOKEN = "glsa_test_0123456789"
DASHBOARD = dashboard_json()["cost.json"]
GROUP = "/apis/dashboard.grafana.app"


class Server(ThreadingHTTPServer):
    """Grafana with one API, the new one in `versions` or the legacy one where that is empty."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.versions: list[str] = []
        self.token: str | None = TOKEN
        self.stored: dict[str, Any] = {}
        self.requests: list[tuple[str, str, Any]] = []
        self.forced: tuple[int, dict[str, str], bytes] | None = None
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def handle_any(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "null")
        self.server.requests.append((self.command, self.path, body))
        if self.server.forced is not None:
            status, headers, text = self.server.forced
            self.answer(status, text, headers)
        elif self.server.token and self.headers["Authorization"] != f"Bearer {self.server.token}":
            self.answer(401, {"message": "Unauthorized"})
        elif self.server.versions:
            self.new(body)
        else:
            self.legacy(body)

    do_GET = do_POST = do_PUT = handle_any  # noqa: N815

    def legacy(self, body: Any) -> None:
        if (self.command, self.path) != ("POST", "/api/dashboards/db"):
            self.answer(404, {"message": "Not found"})
            return
        uid = body["dashboard"]["uid"]
        if uid in self.server.stored and not body.get("overwrite"):
            self.answer(412, {"message": "exists"})
            return
        self.server.stored[uid] = body
        self.answer(200, {"uid": uid, "status": "success"})

    def new(self, body: Any) -> None:
        every = f"{GROUP}/{self.server.versions[0]}/namespaces/default/dashboards"
        if self.path == f"{GROUP}/":
            versions = [{"version": version} for version in self.server.versions]
            self.answer(200, {"kind": "APIGroup", "versions": versions})
        elif (self.command, self.path) == ("POST", every):
            self.server.stored[body["metadata"]["name"]] = body
            self.answer(201, body)
        elif self.path.startswith(f"{every}/"):
            self.one(self.path.removeprefix(f"{every}/"), body)
        else:
            self.answer(404, {"message": "Not found"})

    def one(self, uid: str, body: Any) -> None:
        if uid not in self.server.stored:
            self.answer(404, {"message": "Not found"})
        elif self.command == "GET":
            self.answer(200, {"metadata": {"name": uid, "resourceVersion": "7"}})
        elif body["metadata"].get("resourceVersion") != "7":
            self.answer(409, {"message": "the object has been modified"})
        else:
            self.server.stored[uid] = body
            self.answer(200, body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_legacy_api_gets_the_whole_dashboard_and_may_be_asked_again(server):
    grafana = Grafana(server.url + "/", TOKEN)
    assert grafana.push(DASHBOARD, folder="moe") == f"{server.url}/d/moe-cost"
    grafana.push(DASHBOARD)
    assert server.stored["moe-cost"]["dashboard"] == DASHBOARD | {"id": None}
    methods = [(method, path) for method, path, _ in server.requests]
    assert methods == [("GET", f"{GROUP}/"), *[("POST", "/api/dashboards/db")] * 2]
    assert server.requests[1][2]["folderUid"] == "moe"


@pytest.mark.parametrize("version", ["v1", "v1beta1", "v0alpha1"])
def test_new_api_creates_and_then_replaces(server, version):
    server.versions = [version, "v2beta1"]
    grafana = Grafana(server.url, TOKEN)
    grafana.push(DASHBOARD, folder="moe")
    stored = server.stored["moe-cost"]
    assert stored["apiVersion"] == f"dashboard.grafana.app/{version}"
    assert stored["metadata"]["annotations"] == {"grafana.app/folder": "moe"}
    assert stored["spec"] == {key: v for key, v in DASHBOARD.items() if key != "uid"}
    grafana.push(DASHBOARD)
    assert server.requests[-1][0] == "PUT"
    assert server.stored["moe-cost"]["metadata"]["resourceVersion"] == "7"


def test_command_pushes_all_dashboards_with_a_token_that_appears_nowhere(
    server, capsys, monkeypatch, tmp_path
):
    monkeypatch.setenv("GRAFANA_TOKEN", TOKEN)
    assert main(["grafana", "push", "--url", server.url]) == 0
    assert set(server.stored) == {one["uid"] for one in dashboard_json().values()}
    monkeypatch.delenv("GRAFANA_TOKEN")
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    assert main(["grafana", "push", "--url", server.url, "--token-file", str(file)]) == 0
    output = capsys.readouterr()
    assert output.out.splitlines() == [f"{server.url}/d/{uid}" for uid in server.stored] * 2
    assert TOKEN not in output.out + output.err


def test_server_without_log_in_needs_no_token(server, monkeypatch):
    server.token = None
    monkeypatch.delenv("GRAFANA_TOKEN", raising=False)
    assert main(["grafana", "push", "--url", server.url]) == 0


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, b'{"message": "Unauthorized"}', r"401 \(Unauthorized\); give the token of a service"),
        (403, b'{"message": "no"}', r"403 \(no\); the token's service account needs the role"),
        (
            404,
            b'{"message": "folder not found"}',
            r"store moe-cost: 404 \(folder not found\); check --namespace and --target-folder",
        ),
        (500, b"<html>", r"refused to list its APIs: 500; see Grafana's log"),
        (200, b"<html>", "answers, but not like a Grafana"),
        (200, b'{"versions": [{"version": "v9"}]}', "accepts dashboards as v9, but only v1"),
    ],
)
def test_refusal_names_status_and_remedy_and_not_the_token(server, capsys, status, body, words):
    server.forced = (status, {}, body)
    with pytest.raises(BackendUnavailableError, match=words) as error:
        Grafana(server.url, TOKEN).push(DASHBOARD)
    assert TOKEN not in str(error.value)


def test_wrong_token_is_refused(server):
    with pytest.raises(BackendUnavailableError, match="401"):
        Grafana(server.url, "other").push(DASHBOARD)


def test_redirect_is_not_followed(server):
    server.forced = (302, {"Location": "http://127.0.0.1:9/login"}, b"")
    with pytest.raises(ConfigError, match=r"redirects to http://127.0.0.1:9/login; give the"):
        Grafana(server.url, TOKEN).push(DASHBOARD)
    assert len(server.requests) == 1


def test_change_made_meanwhile_is_not_lost(server):
    server.versions = ["v1"]
    grafana = Grafana(server.url, TOKEN)
    grafana.push(DASHBOARD)
    server.forced = (409, {}, b'{"message": "modified"}')
    with pytest.raises(BackendUnavailableError, match=r"refused to look for moe-cost: 409"):
        grafana.push(DASHBOARD)


def test_no_server_says_where_it_was_looked_for():
    with Server() as gone:
        url = gone.url
    with pytest.raises(BackendUnavailableError, match=f"no Grafana answers at {url}"):
        Grafana(url, None).push(DASHBOARD)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("grafana.example.org", "must be http://HOST:PORT"),
        ("ftp://grafana", "must be http://HOST:PORT"),
        ("https://me:secret@grafana", "must hold only the address"),
        ("https://grafana/?token=1", "must hold only the address"),
    ],
)
def test_wrong_address_is_refused(url, words):
    with pytest.raises(ConfigError, match=words) as error:
        Grafana(url, None)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("text", ["", "two\nlines", "gl\u00e4sa"])
def test_token_file_that_holds_no_token_is_refused(tmp_path, capsys, text):
    file = tmp_path / "token"
    file.write_text(text)
    assert main(["grafana", "push", "--url", "http://h", "--token-file", str(file)]) == 2
    assert "must hold one line of printable ASCII" in capsys.readouterr().err


def test_token_file_that_is_missing_is_named(tmp_path, capsys):
    file = tmp_path / "token"
    assert main(["grafana", "push", "--url", "http://h", "--token-file", str(file)]) == 2
    assert f"the token file {file} cannot be read" in capsys.readouterr().err
