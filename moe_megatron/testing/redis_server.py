"""A real Redis server on a free port of this machine, in a folder of its own.

It listens on loopback, asks for a password, and may be killed and started again. It writes nothing.
"""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from moe_megatron.testing.ports import free_port

PASSWORD = "correct horse"
_STARTING_SECONDS = 30.0


def program() -> str | None:
    """The installed `redis-server`; None if there is none."""
    return shutil.which("redis-server")


@dataclass
class RedisServer:
    """The server."""

    folder: Path
    port: int
    process: "subprocess.Popen[bytes] | None" = field(default=None, init=False)

    @property
    def address(self) -> str:
        """As `--redis` takes it."""
        return f"redis://127.0.0.1:{self.port}"

    def start(self, *more: str) -> None:
        """Start it, and wait until it takes connections.

        Args:
            more: Further lines of its configuration.
        """
        settings = self.folder / "redis.conf"
        settings.write_text(
            f'bind 127.0.0.1\nport {self.port}\nrequirepass "{PASSWORD}"\n'
            f'save ""\nappendonly no\ndir {self.folder}\n' + "\n".join(more)
        )
        settings.chmod(0o600)
        log = self.folder / "log"
        with log.open("ab") as file:
            self.process = subprocess.Popen([str(program()), settings], stdout=file, stderr=file)
        deadline = time.monotonic() + _STARTING_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                ended = self.process.poll() is not None
                if ended or time.monotonic() > deadline:
                    raise AssertionError(f"Redis did not start:\n{log.read_text()}") from None
                time.sleep(0.02)
            else:
                return

    def stop(self) -> None:
        """End it at once, and with it every connection; a second call does nothing."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(30)
            self.process = None


@contextmanager
def redis_server() -> Iterator[RedisServer]:
    """A server that runs for as long as the context is open."""
    folder = Path(tempfile.mkdtemp(prefix="redis-"))
    server = RedisServer(folder, free_port())
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)
