"""A real PostgreSQL server as the database of those who may look; it goes, and comes back."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from sqlalchemy import inspect

from moe_megatron.cli.verbs.dashboard import run as dashboard
from moe_megatron.errors import BackendUnavailableError
from moe_megatron.testing.postgres_server import PASSWORD, USER, PostgresServer
from moe_megatron.testing.written_run import write_run
from moe_megatron.webapp.access.database import open_database, tables
from moe_megatron.webapp.access.gate import UNREACHABLE
from moe_megatron.webapp.access.tokens import AccessTokens
from moe_megatron.webapp.serving import DashboardOptions, DashboardServer

pytestmark = pytest.mark.deep


def asked(server: DashboardServer, token: str) -> httpx.Response:
    return httpx.get(f"{server.url}api/runs", headers={"Authorization": f"Bearer {token}"})


def test_several_dashboards_know_the_same_people(
    postgres: PostgresServer, tmp_path: Path, capsys
) -> None:
    address = postgres.new_database()
    write_run(tmp_path / "run", 2, history=0)
    options = DashboardOptions(folders=[tmp_path], port=0, database=address)
    assert dashboard(["token", "ada", "--role", "viewer", "--database", address]) == 0
    token = capsys.readouterr().out.strip()
    with DashboardServer(options) as first, DashboardServer(options) as second:
        assert [asked(it, token).status_code for it in (first, second)] == [200, 200]
        assert dashboard(["token", "ada", "--revoke", "--database", address]) == 0
        assert [asked(it, token).status_code for it in (first, second)] == [401, 401]
    assert dashboard(["audit", "--database", address]) == 0
    assert "token of ada revoked: done" in capsys.readouterr().out


def test_a_server_that_goes_lets_nobody_in_until_it_is_back(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    address = postgres.new_database()
    token = AccessTokens(open_database(address)).add("ada", "viewer")
    write_run(tmp_path / "run", 2, history=0)
    options = DashboardOptions(folders=[tmp_path], port=0, database=address)
    with DashboardServer(options) as server:
        assert asked(server, token).status_code == 200
        postgres.stop()
        answer = asked(server, token)
        assert (answer.status_code, answer.json()) == (503, {"error": UNREACHABLE})
        with pytest.raises(BackendUnavailableError, match="check that the server runs"):
            DashboardServer(options)
        postgres.start()
        deadline = time.monotonic() + 30
        while asked(server, token).status_code != 200 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert asked(server, token).status_code == 200


def test_many_that_begin_at_once_make_the_tables_once(postgres: PostgresServer) -> None:
    for _ in range(5):
        address = postgres.new_database()
        with ThreadPoolExecutor(8) as pool:
            engines = list(pool.map(open_database, [address] * 8))
        assert set(inspect(engines[0]).get_table_names()) == set(tables.tables)
        for number, engine in enumerate(engines):
            AccessTokens(engine).add(f"n{number}", "viewer")
        assert len(AccessTokens(engines[0]).all()) == 8
        for engine in engines:
            engine.dispose()


def test_a_password_comes_from_a_file_or_the_environment(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = postgres.new_database()
    open_database(address).dispose()
    monkeypatch.setenv("PGPASSWORD", "wrong")
    with pytest.raises(BackendUnavailableError, match="password authentication failed") as error:
        open_database(address)
    assert "wrong" not in str(error.value)
    monkeypatch.delenv("PGPASSWORD")
    passwords = tmp_path / "pgpass"
    passwords.write_text(f"127.0.0.1:{postgres.port}:*:{USER}:{PASSWORD}\n")
    passwords.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(passwords))
    open_database(address).dispose()
