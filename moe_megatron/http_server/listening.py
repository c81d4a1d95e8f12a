"""The socket of a server, bound before anything serves it.

So a port that is taken is a mistake with a remedy, and several processes can serve the same socket.
"""

import ipaddress
import socket

from moe_megatron.errors import ConfigError


def listen(
    host: str, port: int, *, for_all: bool, what: str = "the server", remedy: str = ""
) -> socket.socket:
    """Listen on an address.

    Args:
        host: Name or address of the interface.
        port: 0 for any free one.
        for_all: Whether whoever reaches it may use it: then only this machine may reach it.
        what: What is served, for messages.
        remedy: How it is told who may use it, for the message about that.

    Raises:
        ConfigError: It cannot be listened on, or others can reach it who must not.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"the port must be 0 (a free port) to 65535, not {port}.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(1024)
    except (OSError, UnicodeError) as error:
        listening.close()
        raise ConfigError(
            f"{what} cannot be served on {host} port {port} ({error}); give a free port "
            "with --port, 0 for any, and an address of this machine with --host."
        ) from error
    if for_all and not ipaddress.ip_address(listening.getsockname()[0]).is_loopback:
        listening.close()
        raise ConfigError(
            f"on {host} other machines can reach {what}, so it must know who may use it: {remedy}"
        )
    return listening


def url_of(host: str, listening: socket.socket) -> str:
    """Where a browser on this machine finds what is served."""
    port: int = listening.getsockname()[1]
    host = f"[{host}]" if ":" in host else host
    everywhere = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}
    return f"http://{everywhere.get(host, host)}:{port}/"
