"""Whether the Hugging Face hub can be reached, told within seconds.

Its libraries try for the better part of a minute where there is no network, and say so line by
line. The module fetches nothing.
"""

import os
import socket
from urllib.parse import urlsplit
from urllib.request import getproxies

_SECONDS = 5.0


def hub_is_reachable() -> bool:
    """Whether the server of the hub (HF_ENDPOINT) takes a connection.

    Behind a proxy nobody can tell, and the answer is True.
    """
    if getproxies():
        return True
    address = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname, port), _SECONDS).close()
    except OSError:
        return False
    return True
