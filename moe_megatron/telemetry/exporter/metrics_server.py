"""An HTTP server for one registry: /metrics, on its own threads, optionally with token and TLS.

The server of `prometheus_client` checks no token, so this one is built on the standard library's.
What clients may occupy is bounded (`bounded_server`). It does not know what the registry holds.
"""

import gzip
import hmac
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from wsgiref.simple_server import make_server

from prometheus_client import CollectorRegistry

from moe_megatron.errors import ConfigError
from moe_megatron.telemetry.exporter.bounded_server import (
    CONNECTION_SECONDS,
    BoundedHandler,
    BoundedServer,
)
from moe_megatron.telemetry.exporter.exposition import CONTENT_TYPE, write_text

logger = logging.getLogger(__name__)

_GZIP_LEVEL = 1
"""The fastest level, since the time to compress adds to every scrape."""

_StartResponse = Callable[[str, list[tuple[str, str]]], Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerOptions:
    """Where a server listens, and who may read from it.

    Attributes:
        host: name or address of the interface.
        port: 0 for any free port.
        token: what a client must send as "Authorization: Bearer TOKEN"; None: no token.
        certificate: PEM file of the server's certificate chain; None speaks plain HTTP.
        key: PEM file of its private key.
    """

    host: str = "127.0.0.1"
    port: int = 0
    token: str | None = None
    certificate: Path | None = None
    key: Path | None = None

    def __repr__(self) -> str:  # the token must not reach a log
        return f"ServerOptions(host={self.host!r}, port={self.port})"


class MetricsServer:
    """Serves `registry` until it is closed.

    Raises:
        ConfigError: the address cannot be listened on, or certificate and key do not fit.
    """

    def __init__(self, registry: CollectorRegistry, options: ServerOptions) -> None:
        context = _tls_context(options)
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        server_class = type("_Server", (BoundedServer,), {"address_family": family})
        app = _App(registry, options.token)
        try:
            server: Any = make_server(options.host, options.port, app, server_class, BoundedHandler)
        except OSError as error:
            raise ConfigError(
                f"metrics cannot be served on {options.host} port {options.port} "
                f"({error.strerror}); give a free port with telemetry.metrics_port, 0 for any, "
                "and an address of this machine with telemetry.metrics_host."
            ) from error
        if context is not None:
            # The handshake happens on the request's own thread: a client that never completes it
            # must not block others.
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._server = server
        self.scheme = "http" if context is None else "https"
        self.port: int = server.server_port
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics-server", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stops listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(CONNECTION_SECONDS)


class _App:
    """The WSGI application."""

    def __init__(self, registry: CollectorRegistry, token: str | None) -> None:
        self._registry = registry
        self._authorization = None if token is None else f"Bearer {token}".encode()
        self._failed = False

    def __call__(self, environ: dict[str, Any], start_response: _StartResponse) -> Iterable[bytes]:
        given = environ.get("HTTP_AUTHORIZATION", "").encode("latin-1")
        expected = self._authorization
        if expected is not None and not hmac.compare_digest(given, expected):
            headers = [("WWW-Authenticate", "Bearer")]
            return _answer(start_response, "401 Unauthorized", headers, b"a bearer token is needed")
        if environ.get("PATH_INFO") != "/metrics":
            return _answer(start_response, "404 Not Found", [], b"the metrics are at /metrics")
        if environ.get("REQUEST_METHOD") not in {"GET", "HEAD"}:
            headers = [("Allow", "GET, HEAD")]
            return _answer(start_response, "405 Method Not Allowed", headers, b"only GET")
        return self._metrics(environ, start_response)

    def _metrics(self, environ: dict[str, Any], start_response: _StartResponse) -> Iterable[bytes]:
        try:
            body = write_text(self._registry)
        except Exception as error:  # a failed scrape must be reported but not stop the server
            if not self._failed:
                self._failed = True
                logger.warning("metrics cannot be collected: %s: %s", type(error).__name__, error)
            return _answer(start_response, "500 Internal Server Error", [], b"see the run's log")
        headers = [("Content-Type", CONTENT_TYPE)]
        if "gzip" in environ.get("HTTP_ACCEPT_ENCODING", ""):
            body = gzip.compress(body, _GZIP_LEVEL)
            headers.append(("Content-Encoding", "gzip"))
        return _answer(start_response, "200 OK", headers, body)


def _answer(
    start_response: _StartResponse, status: str, headers: list[tuple[str, str]], body: bytes
) -> Iterable[bytes]:
    start_response(status, [*headers, ("Content-Length", str(len(body)))])
    return [body]


def _tls_context(options: ServerOptions) -> ssl.SSLContext | None:
    if options.certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(options.certificate, options.key)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(
            f"metrics cannot be served over TLS: certificate {options.certificate} and key "
            f"{options.key} cannot be used ({error.strerror or error}); give PEM files that belong "
            "together with telemetry.metrics_tls_certificate and telemetry.metrics_tls_key."
        ) from error
    return context
