"""Serves a dashboard: in this thread until it is interrupted, or beside a program in another one.

It may be one of several processes that serve one socket, which `workers` starts.
"""

import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import uvicorn

from moe_megatron.errors import BackendUnavailableError, ConfigError
from moe_megatron.http_server.listening import url_of
from moe_megatron.live.dashboard_process import PORT
from moe_megatron.webapp.access.database import open_database
from moe_megatron.webapp.access.visitors import Access
from moe_megatron.webapp.app import make_app
from moe_megatron.webapp.built_page import PAGE
from moe_megatron.webapp.inspector.inspector import AsksModels, Inspector
from moe_megatron.webapp.listening import listen_for_dashboard
from moe_megatron.webapp.price import Price
from moe_megatron.webapp.run_list import RunList
from moe_megatron.webapp.sharing.address import RedisAddress
from moe_megatron.webapp.sharing.sharing import Sharing

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
        redis: address of the server through which processes share what they read of runs.
        proxies: addresses of proxies that are believed when they say who asks.
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
    redis: str | None = None
    proxies: Sequence[str] = ()
    page: Path = PAGE


class DashboardServer:
    """A dashboard that has its port, and serves when it is told to.

    Args:
        options: What is shown, and where.
        listening: A socket that listens already; None for one of its own.
        inspector: Asks models, and ends with the server; None for one of its own.

    Raises:
        ConfigError: The address cannot be listened on, or others can reach it and nobody needs a
            token, or there is none.
        BackendUnavailableError: The database does not answer.
    """

    def __init__(
        self,
        options: DashboardOptions,
        *,
        listening: socket.socket | None = None,
        inspector: AsksModels | None = None,
    ) -> None:
        runs = RunList(options.folders, show_tokens=options.show_tokens, price=options.price)
        access = None if options.database is None else those_known(options.database)
        redis = None if options.redis is None else RedisAddress.parse(options.redis)
        if listening is None:
            if redis is not None:
                redis.check()
            listening = listen_for_dashboard(options.host, options.port, for_all=access is None)
        self._socket = listening
        self.inspector: AsksModels = inspector or Inspector()
        """Asks models; ends with the server."""
        app = make_app(
            runs,
            access=access,
            inspector=self.inspector,
            models=options.models,
            names=[options.host, *options.names],
            page=options.page,
            sharing=None if redis is None else Sharing(redis),
        )
        self.url = url_of(options.host, listening)
        """Where a browser finds it."""
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=bool(options.proxies),
                forwarded_allow_ips=list(options.proxies),
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


def those_known(database: str) -> Access:
    """Those who may enter, by a database.

    Raises:
        ConfigError: It cannot be opened, or nobody is in it.
        BackendUnavailableError: Its server does not answer.
    """
    access = Access(open_database(database))
    if not access.tokens.all():
        raise ConfigError(
            f"the database {database} holds no token, so that nobody could log in; make one with: "
            f"moe-megatron dashboard token NAME --role viewer --database {database}"
        )
    return access
