"""By which names a server may be reached, and whether a browser's page is its own.

A page of somebody else, whose name was made to point here (DNS rebinding), asks by that name.
"""

import ipaddress
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit


class KnownHosts:
    """Names of this machine, addresses, and names that were given.

    Args:
        names: Names under which a server may be reached, besides addresses and localhost.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        own = {"localhost", socket.gethostname().lower()}
        self._names = own | {name.lower() for name in names}

    def knows(self, host: str) -> bool:
        """Whether a `Host` header, in small letters, names this server."""
        name = _name_of(host)
        if name in self._names or name.endswith(".localhost"):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def is_same(origin: str, host: str) -> bool:
    """Whether an `Origin` header is that of a page of the server that `Host` names."""
    try:
        return urlsplit(origin).netloc == host
    except ValueError:
        return False


def _name_of(host: str) -> str:
    """The name of a Host header, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host
