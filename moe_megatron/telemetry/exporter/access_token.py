"""Secrets that guard metrics and dashboards: one line of printable ASCII, as HTTP headers take it.

Where a secret comes from, file or environment, each user of this module decides.
"""

from pathlib import Path

from moe_megatron.errors import ConfigError


def read_token_file(file: str | Path, option: str) -> str:
    """The token that a file holds, without white space around it.

    Args:
        file: The file.
        option: With what a user names the file, for errors.

    Raises:
        ConfigError: The file cannot be read, or holds no token.
    """
    try:
        token = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the token file {file} cannot be read ({error}); give a text file that holds nothing "
            f"but the token with {option}."
        ) from error
    check_token(token, f"the token file {file}")
    return token


def check_token(token: str, source: str) -> None:
    """Refuse what is no token.

    Args:
        token: The secret; no message shows it.
        source: Where it is from, for errors.

    Raises:
        ConfigError: It is empty, or not one line of printable ASCII.
    """
    if not token or not token.isascii() or not token.isprintable():
        raise ConfigError(f"{source} must hold one line of printable ASCII; write the token there.")
