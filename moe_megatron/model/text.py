"""Text in, text out: prompts become padded token ids, and what a model appends becomes text.

It uses the model as a function from ids to longer ids; it knows neither layers nor sampling.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe_megatron.errors import ConfigError, DataError
from moe_megatron.text.loading import as_tokenizer
from moe_megatron.text.tokenizer import Tokenizer

# Takes ids [batch, seq] and a mask of the same shape, 0 for padding; returns longer ids.
Generate = Callable[[Tensor, Tensor], Tensor]


def fitting_tokenizer(given: Any, vocab_size: int) -> Tokenizer:
    """A tokenizer as `as_tokenizer` takes it, whose tokens all have a row in the embedding.

    Raises:
        DataError: It cannot be read, or has more tokens than the model.
    """
    tokenizer = as_tokenizer(given)
    if tokenizer.vocab_size > vocab_size:
        raise DataError(
            f"tokenizer {_named(given, tokenizer)} has {tokenizer.vocab_size} tokens and the model "
            f"only {vocab_size}; build the model with vocab_size={tokenizer.vocab_size}."
        )
    return tokenizer


def _named(given: Any, tokenizer: Tokenizer) -> str:
    return repr(str(given if isinstance(given, str | Path) else tokenizer.directory))


def require_tokenizer(tokenizer: Tokenizer | None, reason: str | None = None) -> Tokenizer:
    """The tokenizer, if there is one.

    Args:
        tokenizer: Of the model.
        reason: Why the model has none although its folder does.

    Raises:
        ConfigError: There is none.
    """
    if tokenizer is None:
        why = f"that of its folder cannot be used: {reason} Then" if reason else "so"
        raise ConfigError(
            f"this model has no tokenizer, {why} it cannot read or write text: set model.tokenizer "
            "to a tokenizer folder or a hub id, train it with MoETrainer, which gives it one, or "
            "pass token ids to generate."
        )
    return tokenizer


def continued[Text: (str, list[str])](
    prompt: Text, generate: Generate, tokenizer: Tokenizer, device: torch.device
) -> Text:
    """A prompt, or each of a list, with what the model appends to it.

    Args:
        prompt: Text. If empty, it begins where a document ended.
        generate: The model.
        tokenizer: Its tokenizer.
        device: Of the model.

    Raises:
        DataError: A prompt is no text, or the tokenizer has no tokens for it.
    """
    if isinstance(prompt, str):
        return _continue([prompt], generate, tokenizer, device)[0]
    return _continue(_checked(prompt), generate, tokenizer, device)


def _continue(
    prompts: list[str], generate: Generate, tokenizer: Tokenizer, device: torch.device
) -> list[str]:
    rows = [tokenizer.encode(prompt) or [tokenizer.eod_id] for prompt in prompts]
    length = max(map(len, rows), default=0)
    if not length:
        return []
    padded = [[tokenizer.eod_id] * (length - len(row)) + row for row in rows]
    valid = [[0] * (length - len(row)) + [1] * len(row) for row in rows]
    ids = torch.tensor(padded, device=device)
    answers = generate(ids, torch.tensor(valid, device=device))[:, length:].tolist()
    return [
        prompt + _appended(tokenizer, row, answer)
        for prompt, row, answer in zip(prompts, rows, answers, strict=True)
    ]


def _checked(prompts: Any) -> list[str]:
    texts = list(prompts) if isinstance(prompts, list | tuple) else [prompts]
    for text in texts:
        if not isinstance(text, str):
            raise DataError(
                f"a prompt is {type(text).__name__}, not text; give a string or a list of strings, "
                "or token ids to generate."
            )
    return texts


def _appended(tokenizer: Tokenizer, prompt: list[int], answer: list[int]) -> str:
    """The text of `answer` as it stands after the prompt; some tokenizers drop a first space."""
    before = tokenizer.decode(prompt, skip_special_tokens=True)
    whole = tokenizer.decode([*prompt, *answer], skip_special_tokens=True)
    if whole.startswith(before):
        return whole[len(before) :]
    return tokenizer.decode(answer, skip_special_tokens=True)
