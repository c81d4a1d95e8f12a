"""An HTTP server that no client can occupy: few connections, each of them for a short time.

With too many connections at once the oldest is cut, so that a flood of silent clients does not keep
out one that asks. A connection is cut after a few seconds, however slowly its client goes on
sending, and one that sends more than a request needs is closed. It does not know what is served.
"""

import logging
import socket
import ssl
import threading
import time
from contextlib import suppress
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler

from prometheus_client.exposition import ThreadingWSGIServer

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 16
CONNECTION_SECONDS = 10.0
MAX_REQUEST_BYTES = 16 * 1024


class BoundedServer(ThreadingWSGIServer):
    """A thread for each connection, and a bound on both."""

    daemon_threads = True

    request_queue_size = 128
    """Connections that may wait to be accepted: a client that finds no place asks again after
    seconds, which a scraper does not have."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._connections: dict[socket.socket, float] = {}
        self._changed = threading.Lock()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start the thread of a connection, in place of the oldest one if there are too many."""
        with self._changed:
            open_ones = list(self._connections)
            self._connections[request] = time.monotonic()
        for oldest in open_ones[: len(open_ones) + 1 - MAX_CONNECTIONS]:
            self._cut(oldest)
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer on the thread of the connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._changed:
                self._connections.pop(request, None)

    def service_actions(self) -> None:
        """Cut connections whose time is up; the server calls it twice a second."""
        limit = time.monotonic() - CONNECTION_SECONDS
        with self._changed:
            late = [found for found, began in self._connections.items() if began < limit]
        for connection in late:
            self._cut(connection)

    def _cut(self, connection: socket.socket) -> None:
        with self._changed:
            self._connections.pop(connection, None)
        with suppress(OSError):
            # Of the socket below TLS, whose state belongs to the thread of the connection.
            socket.socket.shutdown(connection, socket.SHUT_RDWR)


class BoundedHandler(WSGIRequestHandler):
    """Handles one connection, without logging and within the bounds."""

    timeout = CONNECTION_SECONDS

    def setup(self) -> None:
        """Open the streams of the connection."""
        super().setup()
        self.rfile = _Bounded(self.rfile)  # type: ignore[assignment]

    def log_message(self, format: str, *args: Any) -> None:
        """Does nothing: requests are not events of the run."""

    def handle(self) -> None:
        """Answer the request, unless the client disconnects or speaks another protocol."""
        try:
            super().handle()
        except (OSError, ssl.SSLError):
            logger.debug("a metrics client went away", exc_info=True)


class _Bounded:
    """A stream of which only so much is read as a request needs."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._left = MAX_REQUEST_BYTES

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def readline(self, size: int = -1) -> bytes:
        line: bytes = self._stream.readline(self._left + 1 if size < 0 else size)
        self._left -= len(line)
        if self._left < 0:
            raise ConnectionError(f"a request has more than {MAX_REQUEST_BYTES} bytes")
        return line
