"""Secrets that protect metrics and dashboards: one line of printable ASCII, for an HTTP header.

Each user of this module decides where the secret comes from, a file or the environment.
"""

from pathlib import Path

from moe_megatron.errors import ConfigError
from moe_megatron.reading import read_text

_MOST_BYTES = 2**16


def read_token_file(file: str | Path, option: str) -> str:
    """Read a token from a file, without surrounding white space.

    Args:
        file: The file.
        option: The option with which the user gave the file, for messages.

    Raises:
        ConfigError: The file cannot be read, or holds no valid token.
    """
    try:
        token = read_text(Path(file), _MOST_BYTES).strip()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the token file {file} cannot be read ({error}); give a text file that holds only the "
            f"token with {option}."
        ) from error
    check_token(token, f"the token file {file}")
    return token


def check_token(token: str, source: str) -> None:
    """Reject an invalid token.

    Args:
        token: The secret; no message shows it.
        source: Where it comes from, for messages.

    Raises:
        ConfigError: It is empty, or not one line of printable ASCII.
    """
    if not token or not token.isascii() or not token.isprintable():
        raise ConfigError(f"{source} must hold one line of printable ASCII; write the token there.")
