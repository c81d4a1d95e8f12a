"""A dashboard that asks who one is: whom it lets in, by what, and for how long."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi.routing import APIRoute
from sqlalchemy.exc import OperationalError
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from moe_megatron.errors import ConfigError
from moe_megatron.webapp.access import gate
from moe_megatron.webapp.access.database import open_database
from moe_megatron.webapp.access.tokens import AccessTokens
from moe_megatron.webapp.access.visitors import Access, RefusedError
from moe_megatron.webapp.access.wrong_tokens import MOST_WRONG
from moe_megatron.webapp.run_facts import run_id
from moe_megatron.webapp.serving import DashboardOptions, DashboardServer

ORIGIN = "http://127.0.0.1"
ASKED = {"X-Requested-With": "moe-megatron", "Origin": ORIGIN}


def test_every_address_with_data_asks_who_one_is(guarded) -> None:
    client = guarded.client()
    app = client.app
    routes = [it for it in app.routes if isinstance(it, APIRoute)]
    assert len(routes) >= 8
    for route in routes:
        path = route.path.replace("{run_id}", run_id(guarded.run)).replace("{call}", "log")
        for method in route.methods:
            answer = client.request(method, path.replace("{rest:path}", "x"), headers=ASKED)
            wanted = 400 if path == "/api/login" else 401
            assert answer.status_code == wanted, (method, path)
            assert "run" not in answer.text.replace("run once", "")
    for path in ("/api", "/api/", "/api//runs", "/api/../api/runs", "/%61pi/runs"):
        assert client.get(path).status_code == 401, path
    # The page itself holds no data, and shows the form.
    assert "built" in client.get("/").text
    (guarded.page / "index.html").unlink()
    assert guarded.client().get("/").status_code == 401


def test_a_token_lets_in_and_says_who_one_is(guarded) -> None:
    for scheme in ("Bearer", "bearer"):
        client = guarded.client(Authorization=f"{scheme} {guarded.token}")
        [run] = client.get("/api/runs").json()
        about = client.get(f"/api/runs/{run['id']}").json()
        assert about["user"] == {"name": "ada", "role": "viewer"}
    for wrong in ("Bearer x", f"Basic {guarded.token}", guarded.token, "Bearer", "Bearer \xff"):
        client = guarded.client()
        answer = client.get("/api/runs", headers={"Authorization": wrong.encode("latin-1")})
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert guarded.token not in answer.text


def test_a_browser_gets_a_cookie_that_scripts_and_other_sites_do_not(guarded) -> None:
    client = guarded.client()
    answer = client.post("/api/login", json={"token": f" {guarded.token}\n"}, headers=ASKED)
    cookie = answer.headers["set-cookie"]
    for part in ("HttpOnly", "SameSite=strict", "Path=/", "Max-Age=43200"):
        assert part in cookie, cookie
    assert "Secure" not in cookie
    assert guarded.token not in cookie
    assert client.get("/api/runs").status_code == 200
    kept = dict(client.cookies)
    assert client.post("/api/logout", headers=ASKED).status_code == 200
    assert client.get("/api/runs").status_code == 401
    # The session is over, not only forgotten by the browser.
    stolen = guarded.client()
    stolen.cookies.update(kept)
    assert stolen.get("/api/runs").status_code == 401
    behind_tls = guarded.client(Host="127.0.0.1").post(
        "/api/login",
        json={"token": guarded.token},
        headers={**ASKED, "Origin": "https://127.0.0.1"},
    )
    assert "Secure" in behind_tls.headers["set-cookie"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": ORIGIN},
        {"X-Requested-With": "moe-megatron"},
        {"X-Requested-With": "XMLHttpRequest", "Origin": ORIGIN},
        {"X-Requested-With": "moe-megatron", "Origin": "http://evil.example"},
        {"X-Requested-With": "moe-megatron", "Origin": "null"},
    ],
)
def test_no_other_site_can_log_somebody_out(guarded, headers: dict[str, str]) -> None:
    client = guarded.logged_in()
    assert client.post("/api/logout", headers=headers).status_code == 403
    assert client.get("/api/runs").status_code == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[]", 400),
        (b"\xff", 400),
        (b"{" * 2000, 400),
        (b'{"token": null}', 401),
        (b'{"token": {"$ne": ""}}', 401),
        (b'{"token": "\' or 1=1 --"}', 401),
        (b'{"token": "\\u0000"}', 401),
        (b" " * 5000, 413),
    ],
)
def test_what_is_no_login_is_refused(guarded, body: bytes, status: int) -> None:
    answer = guarded.client().post("/api/login", content=body, headers=ASKED)
    assert (answer.status_code, "error" in answer.json()) == (status, True)
    assert "set-cookie" not in answer.headers


def test_who_guesses_must_wait_and_sessions_go_on(guarded) -> None:
    inside, client = guarded.logged_in(), guarded.client()
    for _ in range(MOST_WRONG):
        answer = client.post("/api/login", json={"token": "guess"}, headers=ASKED)
        assert answer.status_code == 401
    for found in (
        client.post("/api/login", json={"token": guarded.token}, headers=ASKED),
        client.get("/api/runs", headers={"Authorization": f"Bearer {guarded.token}"}),
    ):
        assert found.status_code == 429
        assert 0 < int(found.headers["retry-after"]) <= 60
        assert "try again in" in found.json()["error"]
    assert inside.get("/api/runs").status_code == 200


def test_wrong_tokens_are_counted_by_all_who_share_the_database(guarded, engine) -> None:
    others = Access(engine)
    for access in [guarded.access, others] * (MOST_WRONG // 2):
        with pytest.raises(RefusedError) as error:
            access.owner_of("guess", "192.0.2.1")
        assert error.value.status == 401
    for access in (guarded.access, others):
        with pytest.raises(RefusedError) as error:
            access.owner_of(guarded.token, "192.0.2.1")
        assert error.value.status == 429
    assert others.owner_of(guarded.token, "192.0.2.2").user.name == "ada"


@pytest.mark.parametrize(
    ("proxies", "address"), [([], "127.0.0.1"), (["127.0.0.0/8"], "192.0.2.7")]
)
def test_a_proxy_says_who_asks_only_where_it_is_trusted(
    guarded, database: str, proxies: list[str], address: str
) -> None:
    options = DashboardOptions(
        folders=[guarded.run], port=0, database=database, proxies=proxies, page=guarded.page
    )
    with DashboardServer(options) as server:
        headers = {**ASKED, "Origin": server.url.rstrip("/"), "X-Forwarded-For": "192.0.2.7"}
        answer = httpx.post(
            f"{server.url}api/login", json={"token": guarded.token}, headers=headers
        )
    assert answer.status_code == 200
    assert guarded.access.audit.newest(1)[0].address == address


def test_a_token_that_is_taken_away_ends_its_sessions(guarded) -> None:
    client = guarded.logged_in()
    guarded.access.tokens.remove("ada")
    assert client.get("/api/runs").status_code == 401


def test_a_database_that_cannot_be_reached_lets_nobody_in(
    guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = guarded.logged_in()

    def fails(*args: object) -> None:
        raise OperationalError("select secret", {}, OSError("gone"))

    monkeypatch.setattr(guarded.access.sessions, "find", fails)
    monkeypatch.setattr(guarded.access.tokens, "find", fails)
    for answer in (
        client.get("/api/runs"),
        client.post("/api/login", json={"token": guarded.token}, headers=ASKED),
    ):
        assert (answer.status_code, answer.json()["error"]) == (503, gate.UNREACHABLE)


@pytest.fixture
def served(guarded, database: str) -> Iterator[DashboardServer]:
    options = DashboardOptions(folders=[guarded.run.parent], port=0, database=database)
    with DashboardServer(options) as server:
        yield server


def heard_to_the_end(client: ClientConnection) -> None:
    for _ in range(100):
        client.recv(timeout=10)


def test_live_frames_are_for_those_who_are_known(
    guarded, served: DashboardServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "_LOOKS_AGAIN_SECONDS", 0.1)
    live = f"{served.url.replace('http', 'ws')}api/live?run={run_id(guarded.run)}"
    for headers in ({}, {"Authorization": "Bearer x"}, {"Cookie": "moe_megatron_0=x"}):
        with pytest.raises(InvalidStatus) as refused, connect(live, additional_headers=headers):
            pass
        assert refused.value.response.status_code == 403
    headers = {"Authorization": f"Bearer {guarded.token}"}
    with connect(live, additional_headers=headers) as client:
        assert json.loads(client.recv(timeout=10))["type"] == "hello"
        client.send('{"type": "pause"}')
        guarded.access.tokens.remove("ada")
        with pytest.raises(ConnectionClosed) as closed:
            heard_to_the_end(client)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008


def test_beyond_this_machine_it_does_not_start_without_tokens(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"other machines can reach.*--database FILE") as error:
        DashboardServer(DashboardOptions(folders=[], host="0.0.0.0", port=0))
    assert "\n" not in str(error.value)
    database = str(tmp_path / "access.db")
    engine = open_database(database, create=True)
    with pytest.raises(ConfigError, match="holds no token, so that nobody could log in"):
        DashboardServer(DashboardOptions(folders=[], port=0, database=database))
    AccessTokens(engine).add("ada", "viewer")
    options = DashboardOptions(folders=[], host="0.0.0.0", port=0, database=database)
    with DashboardServer(options) as server:
        assert server.url.startswith("http://127.0.0.1:")
