"""Small files that are copied along with the weights: tokenizer, chat template, settings.

Code (`*.py`) is never copied.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from moe_megatron.errors import CheckpointError
from moe_megatron.reading import leads_out, read_bytes
from moe_megatron.telemetry.values.profile import PROFILE_FILE

HF_FOLDER = "hf"
"""Folder of these files in a Megatron checkpoint."""

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


def to_hugging_face(folder: Path) -> tuple[Table, ...]:
    """The side files of a Megatron checkpoint, by their names in a Hugging Face folder."""
    return (*_tables(_found(folder / HF_FOLDER), ""), *_profile(folder))


def _found(folder: Path) -> list[Path]:
    matches = {path for pattern in PATTERNS for path in folder.glob(pattern)}
    found = sorted(path for path in matches if path.is_file() and path.suffix != ".py")
    for path in found:
        _check_inside(path, folder)
    return found


def _check_inside(path: Path, folder: Path) -> None:
    """Refuse a link to some other file elsewhere, which a push to the Hub would publish."""
    if real := leads_out(path, folder):
        raise CheckpointError(
            f"{path} is a link to {real}, which is not in the model's folder; it would be copied. "
            "Replace the link by the file if it belongs to the model, or remove it."
        )


def _tables(paths: list[Path], prefix: str) -> tuple[Table, ...]:
    return tuple((prefix + path.name, partial(read_bytes, path)) for path in paths)


def _profile(folder: Path) -> tuple[Table, ...]:
    path = folder / PROFILE_FILE
    if not path.is_file():
        return ()
    _check_inside(path, folder)
    return _tables([path], "")
