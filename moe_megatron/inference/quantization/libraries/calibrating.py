"""Calibration sequences of a text, chosen by where a model sends their tokens."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from moe_megatron.errors import ConfigError, DataError
from moe_megatron.inference.cache.trace import Trace
from moe_megatron.inference.optimized_model import OptimizedMoEModel
from moe_megatron.inference.quantization.calibration import Counts, Coverage, coverage, covering
from moe_megatron.text.loading import load_tokenizer

CANDIDATES = 3
"""Times as many sequences are looked at as are chosen."""


def calibrated(
    path: Path, text: str, sequences: int, length: int, least: int
) -> tuple[Tensor, Coverage]:
    """Choose sequences that together reach every expert, if any of those looked at does.

    Looked at are three times as many, spread evenly over the text.

    Args:
        path: A model folder with a tokenizer.
        text: What is chosen from.
        sequences: How many, at most.
        length: Tokens of each.
        least: Tokens that every expert should get.

    Returns:
        Token ids [S, T], and how many of them each expert gets.

    Raises:
        CheckpointError: The model cannot be read.
        ConfigError: A number is too small.
        DataError: There is no tokenizer, or the text has no sequence of that length.
    """
    if length < 2:
        raise ConfigError(f"length ({length}) must be 2 or more.")
    ids = load_tokenizer(str(path)).encode(text)
    number = len(ids) // length
    if not number:
        raise DataError(
            f"the text has {len(ids):,} tokens, and calibration needs sequences of {length:,}; "
            "give more text, or a smaller length."
        )
    some = np.unique(np.linspace(0, number - 1, min(number, CANDIDATES * sequences)).round())
    rows = torch.tensor([ids[int(it) * length : (int(it) + 1) * length] for it in some])
    model = OptimizedMoEModel.from_pretrained(path)
    try:
        with model.record() as recorder:
            for row in rows:
                model(row[None], logits_to_keep=1)
        found = tokens_by_expert(recorder.trace(), length)
        chosen = covering(found, sequences, least)
        return rows[chosen], coverage(found, chosen, model.store.layers, least)
    finally:
        model.close()


def tokens_by_expert(trace: Trace, length: int) -> Counts:
    """How many tokens of each sequence went to each expert of each layer, [S, L, E].

    Args:
        trace: Of one pass for each token.
        length: Tokens of a sequence.
    """
    about = trace.about
    found = np.zeros((len(trace.passes) // length, about.layers, about.experts), np.int64)
    for token, layers in enumerate(trace.passes):
        for layer, experts in enumerate(layers):
            found[token // length, layer, list(experts)] += 1
    return found
