"""Finds ports that no other process takes by chance."""

import random
import socket
from pathlib import Path

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST, _DEFAULT_END = 10_000, 32_768


def free_port() -> int:
    """A free port of 127.0.0.1.

    The kernel assigns ports of its ephemeral range to outgoing connections, so that one that is
    free now may be taken a moment later. The returned port is below that range.
    """
    end = int(_RANGE.read_text().split()[0]) if _RANGE.exists() else _DEFAULT_END
    # Independent of the test's seed: workers with the same seed must not choose the same port.
    choose = random.SystemRandom()
    if end - _LOWEST < 1_000:
        end = _DEFAULT_END
    while True:
        with socket.socket() as server:
            port = choose.randrange(_LOWEST, end)
            try:
                server.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
