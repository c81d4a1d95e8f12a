"""Floods of the Prometheus exporter."""

import socket
import time
from contextlib import ExitStack, suppress
from random import Random

from moe_megatron.chaos.harm import NothingToHitError, harm
from moe_megatron.chaos.victim import Victim

_CONNECTIONS = 200
_SECONDS = 3.0


@harm("flood-exporter", f"{_CONNECTIONS} connections to the exporter at once that never finish")
def flood_exporter(victim: Victim, random: Random) -> str:
    """Open many connections, send half a request on each, and hold them."""
    address = victim.exporter()
    if address is None:
        raise NothingToHitError("no exporter is running")
    opened = 0
    with ExitStack() as stack:
        for _ in range(_CONNECTIONS):
            with suppress(OSError):
                connection = stack.enter_context(socket.create_connection(address, timeout=0.5))
                opened += 1
                connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-")
        time.sleep(_SECONDS)
    return f"{opened} connections for {_SECONDS:.0f} s"
