"""Perplexity of a model on a text: what a change of its weights costs in words."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from moe_megatron.errors import DataError
from moe_megatron.inference.optimized_model import OptimizedMoEModel


def perplexity(path: Path, ids: Sequence[int], *, window: int = 512) -> float:
    """The exponential of the mean loss over the tokens of a text.

    Args:
        path: A Hugging Face folder, as published or packed.
        ids: The text.
        window: Tokens that know of each other; the first of each is not predicted.

    Raises:
        CheckpointError: The model cannot be read.
        DataError: There are fewer than two tokens.
    """
    if len(ids) < 2:
        raise DataError(f"the text has {len(ids)} tokens, and perplexity needs 2 or more.")
    model = OptimizedMoEModel.from_pretrained(path)
    total, count = 0.0, 0
    try:
        for start in range(0, len(ids) - 1, window):
            some = torch.tensor([ids[start : start + window]])
            if some.shape[1] < 2:
                break
            logits = model(some).logits[0, :-1].float()
            total += float(cross_entropy(logits, some[0, 1:], reduction="sum"))
            count += some.shape[1] - 1
    finally:
        model.close()
    return math.exp(min(total / count, 700.0))
