"""Ports that nothing else takes by chance."""

import random
import socket
from pathlib import Path

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST, _DEFAULT_END = 10_000, 32_768


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on.

    The kernel gives the ports of its own range to every outgoing connection: one of those that is
    free now may be somebody's a moment later. This one lies below that range.
    """
    end = int(_RANGE.read_text().split()[0]) if _RANGE.exists() else _DEFAULT_END
    # Without a seed of the test's: workers with the same seed must not choose the same port.
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
