"""The real server on loopback, asked by real clients."""

import contextlib
import gzip
import os
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.registry import Collector

from moe_megatron.errors import ConfigError
from moe_megatron.telemetry.exporter import bounded_server
from moe_megatron.telemetry.exporter.metrics_server import MetricsServer, ServerOptions


@pytest.fixture
def registry():
    registry = CollectorRegistry()
    Gauge("moe_answer", "The answer.", registry=registry).set(42)
    return registry


@pytest.fixture
def serve(registry):
    servers = []

    def start(registry=registry, **options):
        servers.append(MetricsServer(registry, ServerOptions(**options)))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def ask(server, path="/metrics", *, context=None, method="GET", **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    url = f"{server.scheme}://127.0.0.1:{server.port}{path}"
    request = urllib.request.Request(url, headers=named, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20, context=context) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def test_free_port_serves_the_registry(serve, registry):
    status, headers, body = ask(serve())
    assert (status, body) == (200, generate_latest(registry))
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"


def test_answer_is_packed_for_who_asks_for_it(serve, registry):
    _, headers, body = ask(serve(), Accept_Encoding="gzip")
    assert headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(body) == generate_latest(registry)


def test_server_is_on_loopback_unless_told_otherwise(serve):
    assert serve()._server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("path", "method", "status"), [("/", "GET", 404), ("/metrics", "PUT", 405)]
)
def test_anything_but_metrics_is_refused(serve, path, method, status):
    assert ask(serve(), path, method=method)[0] == status


@pytest.mark.parametrize("given", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "x"}])
def test_token_is_demanded(serve, given):
    server = serve(token="s3cret")
    status, headers, body = ask(server, **given)
    assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
    assert b"moe_answer" not in body
    assert ask(server, Authorization="Bearer s3cret")[0] == 200


def test_token_is_in_no_representation():
    assert "s3cret" not in repr(ServerOptions(token="s3cret"))


@pytest.fixture(scope="module")
def pem(tmp_path_factory):
    """A certificate for 127.0.0.1 and its key."""
    folder = tmp_path_factory.mktemp("tls")
    words = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost".split()
    words += ["-addext", "subjectAltName=IP:127.0.0.1"]
    paths = folder / "certificate.pem", folder / "key.pem"
    words += ["-out", str(paths[0]), "-keyout", str(paths[1])]
    subprocess.run(words, check=True, capture_output=True)
    return paths


def test_tls_with_a_token(serve, pem):
    server = serve(certificate=pem[0], key=pem[1], token="s3cret")
    context = ssl.create_default_context(cafile=str(pem[0]))
    assert server.scheme == "https"
    assert ask(server, context=context, Authorization="Bearer s3cret")[0] == 200
    assert ask(server, context=context)[0] == 401


@pytest.mark.parametrize("tls", [False, True])
def test_client_that_never_speaks_keeps_nobody_out(serve, pem, tls):
    server = serve(**({"certificate": pem[0], "key": pem[1]} if tls else {}))
    context = ssl.create_default_context(cafile=str(pem[0])) if tls else None
    with socket.create_connection(("127.0.0.1", server.port)) as silent:
        assert ask(server, context=context)[0] == 200
        silent.setblocking(False)
        with pytest.raises(BlockingIOError):  # it was still connected meanwhile
            silent.recv(1)


def test_client_of_another_protocol_ends_nothing(serve, pem):
    server = serve(certificate=pem[0], key=pem[1])
    with socket.create_connection(("127.0.0.1", server.port)) as plain:
        plain.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert b"moe_answer" not in plain.recv(1000)
    context = ssl.create_default_context(cafile=str(pem[0]))
    assert ask(server, context=context)[0] == 200


def test_certificate_that_cannot_be_read_is_explained(registry, tmp_path):
    options = ServerOptions(certificate=tmp_path / "none.pem", key=tmp_path / "none.key")
    with pytest.raises(ConfigError, match=r"metrics cannot be served over TLS: certificate .*none"):
        MetricsServer(registry, options)


def test_taken_port_is_explained(serve, registry):
    port = serve().port
    with pytest.raises(
        ConfigError, match=rf"cannot be served on 127.0.0.1 port {port} .*0 for any"
    ):
        MetricsServer(registry, ServerOptions(port=port))


class Broken(Collector):
    """Fails when it collects."""

    def describe(self):
        return []

    def collect(self):
        raise RuntimeError("no disk")


def test_failing_scrape_is_reported_once_and_the_server_lives(serve, caplog):
    registry = CollectorRegistry()
    registry.register(Broken())
    server = serve(registry)
    assert [ask(server)[0] for _ in range(3)] == [500, 500, 500]
    assert caplog.messages == ["metrics cannot be collected: RuntimeError: no disk"]


def test_closed_server_lets_its_port_go(registry):
    server = MetricsServer(registry, ServerOptions())
    server.close()
    MetricsServer(registry, ServerOptions(port=server.port)).close()


def held(server, number):
    """Connections that send nothing."""
    return [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(number)]


def handler_threads():
    return [t for t in threading.enumerate() if "process_request_thread" in t.name]


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_flood_of_silent_clients_neither_keeps_out_a_scraper_nor_leaves_anything(
    serve, registry, monkeypatch
):
    monkeypatch.setattr(bounded_server, "CONNECTION_SECONDS", 2.0)
    server = serve()
    before, threads = len(os.listdir("/proc/self/fd")), len(handler_threads())
    clients = held(server, 200)
    status, _, body = ask(server)
    assert (status, body) == (200, generate_latest(registry))
    wait_until(lambda: len(handler_threads()) <= threads + bounded_server.MAX_CONNECTIONS)
    for client in clients:
        client.close()
    wait_until(lambda: len(handler_threads()) == threads)
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before)


def test_client_that_sends_a_byte_now_and_then_is_cut(serve, monkeypatch):
    monkeypatch.setattr(bounded_server, "CONNECTION_SECONDS", 1.0)
    (client,) = held(serve(), 1)
    client.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
    client.settimeout(0.1)
    deadline = time.monotonic() + 60
    while True:
        assert time.monotonic() < deadline
        try:
            client.sendall(b"x")
            if client.recv(1) == b"":
                break
        except TimeoutError:
            continue
        except OSError:
            break
    client.close()


def test_request_that_is_too_large_is_closed_without_an_answer(serve, registry):
    server = serve()
    (client,) = held(server, 1)
    with contextlib.suppress(OSError):
        client.sendall(b"GET /metrics HTTP/1.1\r\n" + b"X: " + b"y" * 20_000 + b"\r\n")
    with contextlib.suppress(ConnectionResetError):
        assert client.recv(100) == b""
    client.close()
    assert ask(server)[0] == 200
