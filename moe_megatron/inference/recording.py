"""The trace of a text: a model reads it, and what it needed is noted."""

from pathlib import Path

import torch

from moe_megatron.checkpoint.hub import local_folder
from moe_megatron.errors import DataError
from moe_megatron.inference.cache.trace import Trace
from moe_megatron.inference.optimized_model import OptimizedMoEModel
from moe_megatron.text.loading import load_tokenizer


def recorded(source: str | Path, text: str, *, tokens: int, window: int) -> Trace:
    """Which experts decoding a text needs, token by token.

    Args:
        source: A Hugging Face folder with a tokenizer, or a hub id.
        text: What the model reads.
        tokens: How many tokens of it, at most.
        window: Tokens that know of each other; each window is one forward pass.

    Raises:
        CheckpointError: The model cannot be read, or its experts not one by one.
        DataError: There is no tokenizer, or the text has less than two tokens.
        MappingError: The family is unknown.
    """
    path = local_folder(source)
    ids = load_tokenizer(str(path)).encode(text)[:tokens]
    if len(ids) < 2:
        raise DataError(f"the text has {len(ids)} tokens, and a trace needs some more.")
    model = OptimizedMoEModel.from_pretrained(path)
    try:
        with model.record() as recorder:
            for start in range(0, len(ids), window):
                model(torch.tensor([ids[start : start + window]]), logits_to_keep=1)
        return recorder.trace()
    finally:
        model.close()
