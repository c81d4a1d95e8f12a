"""Perplexity of a model on a text: what a change of it costs in words."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from moe_megatron.errors import DataError
from moe_megatron.inference.optimized_model import OptimizedMoEModel

_LARGEST_LOSS = 700.0
"""Whose exponential is still a number."""


def perplexity(path: Path, ids: Sequence[int], *, window: int = 512) -> float:
    """`perplexity_of` a model in a folder, which is loaded for it.

    Raises:
        CheckpointError: The model cannot be read.
        DataError: There are fewer than two tokens.
    """
    model = OptimizedMoEModel.from_pretrained(path)
    try:
        return perplexity_of(model, ids, window=window)
    finally:
        model.close()


def perplexity_of(model: OptimizedMoEModel, ids: Sequence[int], *, window: int = 512) -> float:
    """The exponential of the mean loss over the tokens of a text.

    Args:
        model: The model.
        ids: The text.
        window: Tokens that know of each other; the first of each is not predicted.

    Raises:
        CheckpointError: An expert cannot be read.
        DataError: There are fewer than two tokens.
    """
    if len(ids) < 2:
        raise DataError(f"the text has {len(ids)} tokens, and perplexity needs 2 or more.")
    total, count = 0.0, 0
    for start in range(0, len(ids) - 1, window):
        some = torch.tensor([ids[start : start + window]])
        if some.shape[1] < 2:
            break
        logits = model(some).logits[0, :-1].float()
        total += float(cross_entropy(logits, some[0, 1:], reduction="sum"))
        count += some.shape[1] - 1
    return math.exp(min(total / count, _LARGEST_LOSS))
