"""Chooses the next token of each request in its own way, inside transformers' batches.

Transformers has one seed for all requests, and no temperature of 0 beside others. So this is one of
its logits processors: of each row it chooses a token, and leaves no other for the choice after it.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
)

from moe_megatron.serving.asked import Chance, Sampling, Token

_KEY = "chooser"


class Chooser:
    """The choices of one request: its own dice, and what it told of the last token."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._dice: torch.Generator | None = None
        if sampling.temperature > 0:
            self._dice = torch.Generator()
            if sampling.seed is None:
                self._dice.seed()
            else:
                self._dice.manual_seed(sampling.seed)
        self._told: dict[int, Token] = {}

    def choose(self, logits_V: Tensor) -> int | None:
        """The next token from its logits [V]; None for the largest logit."""
        if self._dice is None and self._sampling.logprobs is None:
            return None
        chosen = int(logits_V.argmax()) if self._dice is None else self._drawn(logits_V)
        if self._sampling.logprobs is not None:
            logprobs_V = logits_V.float().log_softmax(-1)
            best = logprobs_V.topk(self._sampling.logprobs)
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            self._told[chosen] = Token(
                chosen, float(logprobs_V[chosen]), tuple(itertools.starmap(Chance, pairs))
            )
        return chosen

    def told(self, token: int) -> Token:
        """A token with what was told when it was chosen."""
        return self._told.pop(token, None) or Token(token)

    def _drawn(self, logits_V: Tensor) -> int:
        """A token by temperature and top-p (nucleus sampling, arXiv:1904.09751)."""
        probs_V = (logits_V.float() / self._sampling.temperature).softmax(-1)
        if self._sampling.top_p < 1:
            sorted_V, order_V = probs_V.sort(descending=True)
            before_V = sorted_V.cumsum(-1) - sorted_V
            probs_V = probs_V.index_fill(0, order_V[before_V >= self._sampling.top_p], 0.0)
        return int(torch.multinomial(probs_V, 1, generator=self._dice))


class EachInItsWay(ContinuousBatchingLogitsProcessor):  # type: ignore[misc]
    """The processor; requests bring the number that `add` gave."""

    supported_kwargs = {_KEY: int}  # noqa: RUF012
    ignored_kwargs = ()

    def __init__(self) -> None:
        self._choosers: dict[int, Chooser] = {}
        self._numbers = itertools.count()

    def add(self, chooser: Chooser) -> dict[str, int]:
        """Keep a chooser; returns the keywords of its request."""
        number = next(self._numbers) % 2**31
        self._choosers[number] = chooser
        return {_KEY: number}

    def remove(self, keywords: dict[str, int]) -> None:
        """Forget a chooser."""
        self._choosers.pop(keywords[_KEY], None)

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        """Of rows that belong to nobody."""
        int32_tensor.fill_(-1)

    def prepare_tensor_args(self, requests_with_new_token: Sequence[Any]) -> Tensor:
        """The number of each request that gets a token."""
        numbers = [it.state.logit_processor_kwargs[_KEY] for it in requests_with_new_token]
        return torch.tensor(numbers, dtype=torch.int32)

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        """Leave one token in each row [B, V] that chooses in another way than the largest."""
        for row, number in zip(scores, tensor_arg[: len(scores)].tolist(), strict=True):
            chooser = self._choosers.get(number)
            chosen = None if chooser is None else chooser.choose(row)
            if chosen is not None:
                row.fill_(-torch.inf)
                row[chosen] = 0.0
        return scores
