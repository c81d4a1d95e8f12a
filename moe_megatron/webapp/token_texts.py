"""The texts of token ids of a run, by the tokenizer beside its newest checkpoint.

A tokenizer elsewhere, which config.yaml may name, is not looked for: the folder of a run says
nothing about other folders, and nothing is fetched. It does not know who may see texts.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moe_megatron.config.checkpoint_files import HF_FOLDER
from moe_megatron.errors import DataError
from moe_megatron.text.folder import TOKENIZER_FILE

if TYPE_CHECKING:
    from moe_megatron.text.tokenizer import Tokenizer


class TokenTexts:
    """Texts of one run's tokens; it keeps the tokenizer that it has read."""

    def __init__(self) -> None:
        self._read: tuple[tuple[Path, int], Tokenizer | None] | None = None

    def of(self, ids: Sequence[int], checkpoints: Iterable[Path]) -> list[str | None]:
        """The text of each id; None where the run has no tokenizer that can be read.

        Args:
            ids: Of tokens.
            checkpoints: Folders of the run's checkpoints, oldest first.
        """
        tokenizer = self._tokenizer(checkpoints)
        if tokenizer is None:
            return [None] * len(ids)
        return [tokenizer.decode([it]) for it in ids]

    def _tokenizer(self, checkpoints: Iterable[Path]) -> "Tokenizer | None":
        for folder in reversed(list(checkpoints)):
            path = folder / HF_FOLDER / TOKENIZER_FILE
            if path.is_file():
                key = path, path.stat().st_mtime_ns
                if self._read is None or self._read[0] != key:
                    self._read = key, _loaded(path.parent)
                return self._read[1]
        return None


def _loaded(folder: Path) -> "Tokenizer | None":
    from moe_megatron.text.loading import load_tokenizer  # tokenizers, which no training needs here

    try:
        return load_tokenizer(folder)
    except DataError:
        return None
