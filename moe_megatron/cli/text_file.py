"""A file of text that a command is given."""

from pathlib import Path

from moe_megatron.errors import DataError
from moe_megatron.reading import read_text

_MOST = 64 * 2**20


def text_of(path: Path) -> str:
    """What is in the file.

    Raises:
        DataError: It cannot be read, is larger than 64 MiB, or is no text in UTF-8.
    """
    try:
        return read_text(path, _MOST)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in UTF-8: {error}; give a file of text.") from error
