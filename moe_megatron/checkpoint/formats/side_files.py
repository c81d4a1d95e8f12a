"""Small files that are copied along with the weights: tokenizer, chat template, settings.

Code (`*.py`) is never copied.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from moe_megatron.checkpoint.formats.own_files import check_own
from moe_megatron.config.checkpoint_files import HF_FOLDER
from moe_megatron.reading import read_bytes
from moe_megatron.telemetry.values.profile import PROFILE_FILE

PATTERNS = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "*.jinja",
    "*.model",
    "*.tiktoken",
    "vocab.*",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "LICENSE*",
    "NOTICE*",
    "README.md",
)

Table = tuple[str, Callable[[], bytes]]


def to_megatron(folder: Path, *, profile: bool = True) -> tuple[Table, ...]:
    """The side files of a Hugging Face folder, by their names in a Megatron checkpoint.

    Args:
        folder: The Hugging Face folder.
        profile: Whether to include the routing profile; False if the import changes the experts.
    """
    found = _tables(_found(folder), f"{HF_FOLDER}/")
    return (*found, *_profile(folder)) if profile else found


def beside(folder: Path) -> tuple[Table, ...]:
    """What a Megatron checkpoint holds of its tokenizer and origin, by its names there."""
    origin = [folder / HF_FOLDER / name for name in ("config.json", "origin.json")]
    there = [path for path in origin if path.is_file()]
    for path in there:
        check_own(path, folder)
    return _tables([*_found(folder / HF_FOLDER), *there], f"{HF_FOLDER}/")


def to_hugging_face(folder: Path) -> tuple[Table, ...]:
    """The side files of a Megatron checkpoint, by their names in a Hugging Face folder."""
    return (*_tables(_found(folder / HF_FOLDER), ""), *_profile(folder))


def between_hugging_face(folder: Path) -> tuple[Table, ...]:
    """The side files of a Hugging Face folder, by their names in another one."""
    return (*_tables(_found(folder), ""), *_profile(folder))


def _found(folder: Path) -> list[Path]:
    matches = {path for pattern in PATTERNS for path in folder.glob(pattern)}
    found = sorted(path for path in matches if path.is_file() and path.suffix != ".py")
    for path in found:
        check_own(path, folder)
    return found


def _tables(paths: list[Path], prefix: str) -> tuple[Table, ...]:
    return tuple((prefix + path.name, partial(read_bytes, path)) for path in paths)


def _profile(folder: Path) -> tuple[Table, ...]:
    path = folder / PROFILE_FILE
    if not path.is_file():
        return ()
    check_own(path, folder)
    return _tables([path], "")
