"""Addresses of Redis: which are some, and where the password comes from."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from moe_megatron.cli.main import main
from moe_megatron.errors import BackendUnavailableError, ConfigError
from moe_megatron.testing.ports import free_port
from moe_megatron.webapp.sharing.address import PASSWORD, PASSWORD_FILE, RedisAddress
from moe_megatron.webapp.sharing.sharing import Sharing


def test_an_address_is_read() -> None:
    found = RedisAddress.parse("rediss://ada@[::1]:6380/2", {PASSWORD: "secret"})
    assert (found.host, found.port, found.number, found.user) == ("::1", 6380, 2, "ada")
    assert (found.password, found.encrypted) == ("secret", True)
    assert "secret" not in f"{found} {found!r}"
    assert str(found) == "rediss://[::1]:6380/2"
    assert str(RedisAddress.parse("redis://cache", {})) == "redis://cache:6379/0"


@pytest.mark.parametrize(
    "given",
    [
        *("", "cache", "http://cache", "redis://", "redis://c:x", "redis://c/x", "redis://c/-1"),
        *("redis://c?db=1", "unix:///tmp/s", "redis://c:99999999", "redis://[c"),
    ],
)
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="give the address of a Redis server in this form"):
        RedisAddress.parse(given, {})


@pytest.mark.parametrize(
    "given", ["redis://u:secret@h", "redis://:secret@h", "redis://h?password=secret"]
)
def test_a_password_on_the_command_line_is_refused_and_not_repeated(given: str) -> None:
    with pytest.raises(ConfigError, match=PASSWORD) as error:
        RedisAddress.parse(given, {})
    assert "secret" not in str(error.value)


def test_a_password_comes_from_a_file_of_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "password"
    given = {PASSWORD_FILE: str(path)}
    with pytest.raises(ConfigError, match=r"cannot be read from .*password \(No such file"):
        RedisAddress.parse("redis://h", given)
    path.write_text("correct horse\n")
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        RedisAddress.parse("redis://h", given)
    path.chmod(0o600)
    assert RedisAddress.parse("redis://h", given).password == "correct horse"
    assert RedisAddress.parse("redis://h", {**given, PASSWORD: "other"}).password == "other"


def test_without_its_client_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "redis.retry", None)
    with pytest.raises(BackendUnavailableError, match=r"open-moe-trainer-lab\[redis\]"):
        RedisAddress.parse("redis://h", {}).options()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_who_is_not_let_in_reads_one_paragraph(
    redis, monkeypatch: pytest.MonkeyPatch, capsys, workers: str
) -> None:
    monkeypatch.setenv(PASSWORD, "wrong horse")
    words = ["dashboard", "--port", "0", "--no-open", "--workers", workers]
    assert main([*words, "--redis", redis.address]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert f"the Redis server {redis.address}/0 cannot be used" in said.err
    assert PASSWORD_FILE in said.err
    assert "wrong horse" not in said.err
    redis.stop()
    assert main([*words, "--redis", redis.address]) == 2
    assert "check that it runs" in capsys.readouterr().err


def test_a_connection_by_tls_is_made_to_whom_it_trusts_alone(
    redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    words += ["-nodes", "-subj", "/CN=redis", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*words, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    port = free_port()
    settings = {"port": port, "auth-clients": "no", "key-file": key, "cert-file": certificate}
    redis.stop()
    redis.start(*(f"tls-{name} {value}" for name, value in settings.items()))
    address = RedisAddress.parse(f"rediss://127.0.0.1:{port}")
    with pytest.raises(BackendUnavailableError, match="certificate verify failed"):
        address.check()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    address.check()

    async def asked() -> bool:
        client = Sharing(address).client
        try:
            return await client.ping()
        finally:
            await client.aclose()

    assert asyncio.run(asked())
    with pytest.raises(BackendUnavailableError):
        RedisAddress.parse(f"redis://127.0.0.1:{port}").check()
