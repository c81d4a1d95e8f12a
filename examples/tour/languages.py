"""One book in several languages: the Debian Reference, which Debian packages as plain text.

The model of the tour has read English and next to nothing else, so that the other languages are
domains that it does not know, about the same things.
"""

import gzip
import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from moe_megatron.errors import DataError
from moe_megatron.files import publishing

NAMES = {"en": "English", "de": "German", "fr": "French", "ja": "Japanese"}
_INSTALLED = Path("/usr/share/debian-reference")
_PIECE = 1500
"""Characters of a piece, about."""
_HELD_OUT = 10
"""Every tenth piece is kept from training."""


def pieces(language: str, cache: Path) -> tuple[list[str], list[str]]:
    """The book in pieces of a few paragraphs: those to train on, and those held out.

    Args:
        language: A key of `NAMES`.
        cache: Folder for books that are not installed.

    Raises:
        DataError: The book is not installed, and cannot be downloaded.
    """
    text = gzip.decompress(_book(language, cache).read_bytes()).decode("utf-8")
    found, piece = [], ""
    for paragraph in filter(None, map(str.strip, text.split("\n\n"))):
        piece = f"{piece}\n\n{paragraph}" if piece else paragraph
        if len(piece) >= _PIECE:
            found.append(piece)
            piece = ""
    found = found[len(found) // 20 :]  # without the table of contents
    train = [it for number, it in enumerate(found) if number % _HELD_OUT]
    return train, found[::_HELD_OUT]


def write_jsonl(texts: Sequence[str], path: Path) -> Path:
    """Write texts as documents to train on."""
    path.write_text("".join(json.dumps({"text": it}) + "\n" for it in texts), encoding="utf-8")
    return path


def _book(language: str, cache: Path) -> Path:
    name = f"debian-reference.{language}.txt.gz"
    for folder in (_INSTALLED, cache):
        if (folder / name).exists():
            return folder / name
    package = f"debian-reference-{language}"
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        try:
            subprocess.run(
                ["apt-get", "download", "-qq", package],
                cwd=scratch, check=True, stdin=subprocess.DEVNULL,
            )  # fmt: skip
            (archive,) = Path(scratch).glob("*.deb")
            subprocess.run(["dpkg-deb", "-x", archive, scratch], check=True)
            content = (Path(scratch) / _INSTALLED.relative_to("/") / name).read_bytes()
        except (OSError, subprocess.CalledProcessError, ValueError) as error:
            raise DataError(
                f"the Debian Reference in {NAMES[language]} is neither installed nor to be had "
                f"({error}); on Debian or Ubuntu: apt-get install {package}. Elsewhere put "
                f"{name} into {cache}."
            ) from error
    with publishing(cache / name) as partial:
        partial.write_bytes(content)
    return cache / name
