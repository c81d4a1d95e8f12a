"""A dashboard that asks who one is, as a browser meets it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import Engine
from starlette.testclient import TestClient

from moe_megatron.platform.scratch import environment
from moe_megatron.testing.postgres_server import (
    PASSWORD,
    PostgresServer,
    postgres_server,
    programs,
)
from moe_megatron.testing.written_run import write_run
from moe_megatron.webapp.access.database import open_database
from moe_megatron.webapp.access.visitors import Access
from moe_megatron.webapp.app import make_app
from moe_megatron.webapp.run_list import RunList

ORIGIN = "http://127.0.0.1"
ASKED = {"X-Requested-With": "moe-megatron", "Origin": ORIGIN}


@dataclass
class Guarded:
    """A dashboard with one token, without a server around it."""

    access: Access
    run: Path
    page: Path
    token: str
    origin: str = ORIGIN

    @property
    def asked(self) -> dict[str, str]:
        """Headers of a request that changes something."""
        return dict(ASKED)

    def client(self, **more: str) -> TestClient:
        """A browser that has been here never before."""
        app = make_app(RunList([self.run.parent]), access=self.access, page=self.page)
        return TestClient(app, base_url=ORIGIN, headers=more)

    def logged_in(self, token: str = "") -> TestClient:
        """One that has a session."""
        client = self.client()
        given = {"token": token or self.token}
        assert client.post("/api/login", json=given, headers=ASKED).status_code == 200
        return client


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A server that was started for the tests."""
    if programs() is None:
        pytest.skip("needs PostgreSQL: apt-get install -y postgresql")
    with postgres_server() as server, environment({"PGPASSWORD": PASSWORD}):
        yield server


@pytest.fixture(params=["file", pytest.param("server", marks=pytest.mark.deep)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database, of each kind."""
    if request.param == "file":
        path = tmp_path / "access.db"
        path.touch(0o600)
        return str(path)
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture
def engine(database: str) -> Iterator[Engine]:
    """The same, open."""
    engine = open_database(database)
    yield engine
    engine.dispose()


@pytest.fixture
def guarded(tmp_path: Path, engine: Engine) -> Guarded:
    """A dashboard with such a database."""
    access = Access(engine)
    run = write_run(tmp_path / "runs" / "run", 3, history=0)
    page = tmp_path / "page"
    page.mkdir()
    (page / "index.html").write_text("<title>built</title>")
    return Guarded(access, run, page, access.tokens.add("ada", "viewer"))
