"""Batches on which a `MoEModel` is measured in this process: of text, or of conversations.

Text is cut into rows, one after another. A conversation has a row of its own, cut where training
would cut it, and its answers alone are predicted. It does not know the model.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from moe_megatron.data.index import read_tokens
from moe_megatron.data.instructions.packing import packed_rows
from moe_megatron.data.instructions.stored import (
    StoredPairs,
    StoredSamples,
    holds_instructions,
    holds_pairs,
)
from moe_megatron.errors import ConfigError
from moe_megatron.model.inputs import IGNORED_LABEL


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows for a forward pass."""

    input_ids: Tensor
    """int64 [rows, sequence]; 0 where a row is padded."""
    labels: Tensor
    """The same, and `IGNORED_LABEL` where nothing is to be predicted."""
    valid: Tensor
    """int64 [rows, sequence], 0 for padding."""

    @property
    def predicted(self) -> int:
        """Number of tokens that are predicted."""
        return int((self.labels[:, 1:] != IGNORED_LABEL).sum())


def batches(
    prefix: Path, length: int, size: int, most: int | None, *, pairs: bool = False
) -> Iterator[Batch]:
    """The rows of a prepared dataset.

    Args:
        prefix: The dataset.
        length: Tokens of a row of training.
        size: Rows of a batch.
        most: Tokens of a row that the model can take; None: as many as there are.
        pairs: Whether pairs of answers are read, too: each answer as a conversation of its own,
            chosen and rejected, cut at half a row as in training.

    Raises:
        ConfigError: There is no token to predict.
        DataError: No conversation has an answer within a row, or pairs are not expected.
    """
    if holds_instructions([prefix]):
        if pairs and holds_pairs([prefix]):
            return _of_samples(StoredPairs(prefix).sides, length // 2, size, most)
        return _of_samples(StoredSamples(prefix), length, size, most)
    tokens = torch.from_numpy(read_tokens(prefix).astype("int64"))
    if length < 2 or len(tokens) < 2:
        raise ConfigError(
            f"sequences of {min(length, len(tokens))} token(s) have none to predict; give text "
            "and a sequence_length of at least 2 tokens."
        )
    return _of_text(tokens, length, size)


def _of_text(tokens: Tensor, length: int, size: int) -> Iterator[Batch]:
    padding = -len(tokens) % length
    rows = pad(tokens, (0, padding), value=IGNORED_LABEL).view(-1, length)
    for labels in torch.split(rows, size):
        yield Batch(labels.clamp_min(0), labels, (labels >= 0).long())


def _of_samples(stored: StoredSamples, length: int, size: int, most: int | None) -> Iterator[Batch]:
    # A row of training has a place less than its sample has tokens.
    longest = min(length + 1, most or length + 1)
    numbers = sorted(it for row in packed_rows(stored, longest - 1).rows for it in row)
    for first in range(0, len(numbers), size):
        samples = [stored.sample(it, longest) for it in numbers[first : first + size]]
        width = max(len(ids) for ids, _ in samples)
        input_ids = torch.zeros(len(samples), width, dtype=torch.int64)
        labels, valid = torch.full_like(input_ids, IGNORED_LABEL), torch.zeros_like(input_ids)
        for row, (ids, learned) in enumerate(samples):
            tokens = torch.from_numpy(ids.astype("int64"))
            answers = torch.from_numpy(learned.copy())
            input_ids[row, : len(ids)], valid[row, : len(ids)] = tokens, 1
            labels[row, : len(ids)] = tokens.masked_fill(~answers, IGNORED_LABEL)
        yield Batch(input_ids, labels, valid)
