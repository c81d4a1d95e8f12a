"""Free ports."""

import socket
from pathlib import Path

from moe_megatron.testing.ports import free_port

RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def test_ports_are_free_and_not_those_of_outgoing_connections() -> None:
    lowest, highest = map(int, RANGE.read_text().split())
    ports = [free_port() for _ in range(50)]
    assert len(set(ports)) > 40
    assert not any(lowest <= port <= highest for port in ports)
    with socket.socket() as server:
        server.bind(("127.0.0.1", ports[0]))
