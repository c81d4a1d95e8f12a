"""The socket of a dashboard, with what to do where others could reach it."""

import socket

from moe_megatron.http_server.listening import listen

_REMEDY = (
    "make a token with `moe-megatron dashboard token NAME --role viewer --database FILE` and start "
    "it with `--database FILE`; or leave --host out and forward the port (ssh -L)."
)


def listen_for_dashboard(host: str, port: int, *, for_all: bool) -> socket.socket:
    """Listen on an address.

    Raises:
        ConfigError: It cannot be listened on, or others can reach it who must not.
    """
    return listen(host, port, for_all=for_all, what="the dashboard", remedy=_REMEDY)
