"""Small files that travel with the weights: tokenizer, chat template, generation settings.

Code (`*.py`) never travels.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from moe_megatron.data.tokenizer import TOKENIZER_FILES
from moe_megatron.telemetry.values.profile import PROFILE_FILE

HF_FOLDER = "hf"
"""Where they lie in a Megatron checkpoint."""

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


def has_tokenizer(folder: Path) -> bool:
    """Whether a Hugging Face folder holds what a tokenizer is made of."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def to_megatron(folder: Path, *, profile: bool = True) -> tuple[Table, ...]:
    """Files beside Hugging Face tensors, by the names they get in a Megatron checkpoint.

    Args:
        folder: Where they are.
        profile: Whether the routing profile is one of them; that of other experts is not.
    """
    found = _tables(_found(folder), f"{HF_FOLDER}/")
    return (*found, *_profile(folder)) if profile else found


def to_hugging_face(folder: Path) -> tuple[Table, ...]:
    """Files beside Megatron's tensors, by the names they get in a Hugging Face folder."""
    return (*_tables(_found(folder / HF_FOLDER), ""), *_profile(folder))


def _found(folder: Path) -> list[Path]:
    matches = {path for pattern in PATTERNS for path in folder.glob(pattern)}
    return sorted(path for path in matches if path.is_file() and path.suffix != ".py")


def _tables(paths: list[Path], prefix: str) -> tuple[Table, ...]:
    return tuple((prefix + path.name, partial(path.read_bytes)) for path in paths)


def _profile(folder: Path) -> tuple[Table, ...]:
    path = folder / PROFILE_FILE
    return _tables([path], "") if path.is_file() else ()
