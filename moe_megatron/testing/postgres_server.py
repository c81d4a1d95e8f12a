"""A real PostgreSQL server on a free port of this machine, in a folder of its own.

It listens on loopback, asks for a password (SCRAM), and may be killed and started again. As
PostgreSQL refuses to run as root, root starts it as `nobody`.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe_megatron.testing.ports import free_port

PASSWORD = "correct horse"
USER = "moe"
_OTHER = "nobody"
_STARTING_SECONDS = 60.0


def programs() -> Path | None:
    """Folder of the newest installed `postgres` and `initdb`; None if there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=_version)
    if found:
        return found[-1].parent
    on_path = shutil.which("postgres")
    return None if on_path is None else Path(on_path).resolve().parent


def _version(program: Path) -> int:
    name = program.parts[-3]
    return int(name) if name.isdecimal() else 0


@dataclass
class PostgresServer:
    """The server, which has one role that may make databases."""

    folder: Path
    port: int
    _process: "subprocess.Popen[bytes] | None" = field(default=None, init=False)
    _databases: int = field(default=0, init=False)

    @classmethod
    def make(cls, folder: Path) -> "PostgresServer":
        """Make its files; it does not run yet."""
        password = folder / "password"
        password.write_text(PASSWORD)
        if os.geteuid() == 0:
            for path in (folder, password):
                shutil.chown(path, _OTHER)
        words = ["initdb", "-D", folder / "data", "-U", USER, "--auth=scram-sha-256", "-N"]
        _run([*words, f"--pwfile={password}", "--encoding=UTF8", "--locale=C"], check=True)
        return cls(folder, free_port())

    def start(self) -> None:
        """Start it, and wait until it answers."""
        words = ["postgres", "-D", self.folder / "data", "-p", self.port, "-k", self.folder]
        words += ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]
        log = self.folder / "log"
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                _words(words), **_as_other(), stdout=file, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + _STARTING_SECONDS
        ready = ["pg_isready", "-h", "127.0.0.1", "-p", self.port]
        while _run(ready, check=False).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"PostgreSQL did not start:\n{log.read_text()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End it at once, and with it every connection; a second call does nothing."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(30)
            self._process = None

    def new_database(self) -> str:
        """The address of a new, empty database."""
        import psycopg
        from psycopg.sql import SQL, Identifier

        self._databases += 1
        name = f"test{self._databases}"
        where = f"host=127.0.0.1 port={self.port} user={USER} dbname=postgres"
        with psycopg.connect(where, password=PASSWORD, autocommit=True) as connection:
            connection.execute(SQL("create database {}").format(Identifier(name)))
        return f"postgresql+psycopg://{USER}@127.0.0.1:{self.port}/{name}"


def _words(words: list[object]) -> list[str]:
    folder = programs()
    assert folder is not None
    return [str(folder / str(words[0])), *map(str, words[1:])]


def _as_other() -> dict[str, Any]:
    return {"user": _OTHER, "group": "nogroup", "cwd": "/"} if os.geteuid() == 0 else {}


def _run(words: list[object], *, check: bool) -> "subprocess.CompletedProcess[bytes]":
    done = subprocess.run(_words(words), **_as_other(), capture_output=True)
    assert not check or done.returncode == 0, done.stderr.decode()
    return done


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A server that runs for as long as the context is open."""
    # Folders of tests are closed to other users; this one must not be.
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    folder.chmod(0o755)
    server = PostgresServer.make(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)
