"""Serves a dashboard: in this thread until it is interrupted, or beside a program in another one.

It binds the port itself, so that one that is taken is a mistake with a remedy.
"""

import ipaddress
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import uvicorn

from moe_megatron.errors import BackendUnavailableError, ConfigError
from moe_megatron.live.dashboard_process import PORT
from moe_megatron.webapp.access.database import open_database
from moe_megatron.webapp.access.visitors import Access
from moe_megatron.webapp.app import make_app
from moe_megatron.webapp.built_page import PAGE
from moe_megatron.webapp.inspector.inspector import Inspector
from moe_megatron.webapp.price import Price
from moe_megatron.webapp.run_list import RunList

_MOST_CONNECTIONS = 1024
_MOST_MESSAGE_BYTES = 4096
_MOST_HEADER_BYTES = 16 * 1024
_STARTING_SECONDS = 30.0
_ENDING_SECONDS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class DashboardOptions:
    """What is shown, and where.

    Attributes:
        folders: folders of runs, or folders around them.
        models: folders of models whose tokens may be followed, besides checkpoints of the runs.
        host: name or address of the interface.
        port: 0 for any free port.
        names: names under which browsers may reach it, besides addresses and localhost.
        show_tokens: whether text of training data may be shown.
        price: what a device costs; None shows no money.
        database: of those who may look, a file or the address of a server; None: everybody on this
            machine.
        page: folder of the built page.
    """

    folders: Sequence[Path]
    models: Sequence[Path] = ()
    host: str = "127.0.0.1"
    port: int = PORT
    names: Sequence[str] = ()
    show_tokens: bool = False
    price: Price | None = None
    database: str | None = None
    page: Path = PAGE


class DashboardServer:
    """A dashboard that has its port, and serves when it is told to.

    Raises:
        ConfigError: The address cannot be listened on, or others can reach it and nobody needs a
            token, or there is none.
        BackendUnavailableError: The database does not answer.
    """

    def __init__(self, options: DashboardOptions) -> None:
        runs = RunList(options.folders, show_tokens=options.show_tokens, price=options.price)
        access = None if options.database is None else _those_known(options.database)
        self._socket = _listen(options.host, options.port, for_all=access is None)
        names = [options.host, *options.names]
        self.inspector = Inspector()
        """Asks models; ends with the server."""
        app = make_app(
            runs,
            access=access,
            inspector=self.inspector,
            models=options.models,
            names=names,
            page=options.page,
        )
        port: int = self._socket.getsockname()[1]
        host = f"[{options.host}]" if ":" in options.host else options.host
        everywhere = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}
        self.url = f"http://{everywhere.get(host, host)}:{port}/"
        """Where a browser finds it."""
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                lifespan="off",
                ws_max_size=_MOST_MESSAGE_BYTES,
                ws_per_message_deflate=False,  # a frame is small, and its time counts
                limit_concurrency=_MOST_CONNECTIONS,
                h11_max_incomplete_event_size=_MOST_HEADER_BYTES,
                timeout_graceful_shutdown=_ENDING_SECONDS,
            )
        )
        self._thread: threading.Thread | None = None

    def serve(self) -> None:
        """Serve until SIGINT or SIGTERM."""
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self.inspector.close()

    def start(self) -> Self:
        """Serve on a thread until `close`.

        Raises:
            BackendUnavailableError: It does not come up.
        """
        self._thread = threading.Thread(target=self.serve, name="dashboard", daemon=True)
        self._thread.start()
        deadline = time.monotonic() + _STARTING_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise BackendUnavailableError(
                    f"the dashboard at {self.url} did not start; look for its message above, and "
                    "start `moe-megatron dashboard` in another terminal instead."
                )
            time.sleep(0.01)
        return self

    def end(self) -> None:
        """Ask whoever serves to stop; from any thread."""
        self._server.should_exit = True

    def close(self) -> None:
        """Stop serving; a second call does nothing."""
        self.end()
        if self._thread is not None:
            self._thread.join(_STARTING_SECONDS)
        self._socket.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.close()


def _those_known(database: str) -> Access:
    access = Access(open_database(database))
    if not access.tokens.all():
        raise ConfigError(
            f"the database {database} holds no token, so that nobody could log in; make one with: "
            f"moe-megatron dashboard token NAME --role viewer --database {database}"
        )
    return access


def _listen(host: str, port: int, *, for_all: bool) -> socket.socket:
    if not 0 <= port <= 65535:
        raise ConfigError(f"the port must be 0 (a free port) to 65535, not {port}.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(1024)
    except (OSError, UnicodeError) as error:
        listening.close()
        raise ConfigError(
            f"the dashboard cannot be served on {host} port {port} ({error}); give a free port "
            "with --port, 0 for any, and an address of this machine with --host."
        ) from error
    if for_all and not ipaddress.ip_address(listening.getsockname()[0]).is_loopback:
        listening.close()
        raise ConfigError(
            f"on {host} other machines can reach the dashboard, so it must know who may look: make "
            "a token with `moe-megatron dashboard token NAME --role viewer --database FILE` and "
            "start it with `--database FILE`; or leave --host out and forward the port (ssh -L)."
        )
    return listening
