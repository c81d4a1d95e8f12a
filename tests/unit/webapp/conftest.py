"""A dashboard that serves a folder with one run, as a browser meets it."""

import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from moe_megatron.testing.written_run import write_run
from moe_megatron.webapp.run_facts import run_id
from moe_megatron.webapp.serving import DashboardOptions, DashboardServer


@dataclass(frozen=True)
class Served:
    """The server, the folder with the run, and the run."""

    server: DashboardServer
    folder: Path
    run: Path

    @property
    def id(self) -> str:
        return run_id(self.run)

    def get(self, path: str, **headers: str) -> tuple[int, bytes, Mapping[str, str]]:
        """Status, body and headers of an answer."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.server.url + path, headers=named)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read(), answer.headers
        except urllib.error.HTTPError as error:
            return error.code, error.read(), error.headers

    @property
    def live(self) -> str:
        """Address of live frames."""
        return self.server.url.replace("http://", "ws://") + f"api/live?run={self.id}"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("runs")
    run = write_run(folder / "run", 30, history=20)
    with DashboardServer(DashboardOptions(folders=[folder], port=0)) as server:
        yield Served(server, folder, run)
