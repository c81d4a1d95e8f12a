"""Which sequences of a text a method learns from, so that every expert has seen some of them.

A text sends most of its tokens to few experts, and one that got none is rounded without knowing
what it computes. Sequences are chosen one after the other, each the one that helps most: the
greedy cover, whose sum is at least 63 % of the best that any choice of as many has
(Nemhauser, Wolsey and Fisher 1978). It knows counts alone, no model and no text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_megatron.config.aligned import aligned
from moe_megatron.config.checks import first_few
from moe_megatron.errors import ConfigError

Counts = NDArray[np.int64]
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many calibration tokens every expert gets."""

    layers: tuple[int, ...]
    """Numbers of the layers with experts, from 0."""
    tokens: Counts
    """[L, E]."""
    least: int
    """What every expert should have."""

    @property
    def below(self) -> tuple[str, ...]:
        """Experts with fewer, those with fewest first."""
        rows, experts = np.nonzero(self.tokens < self.least)
        order = np.argsort(self.tokens[rows, experts], kind="stable")
        return tuple(
            f"layer {self.layers[rows[it]]} expert {experts[it]} "
            f"({self.tokens[rows[it], experts[it]]:,})"
            for it in order
        )

    def table(self) -> str:
        """A line for each layer, and the experts that have too few."""
        head = ["layer", "fewest", "median", "most", f"experts below {self.least:,}"]
        rows = [
            [
                str(layer),
                f"{them.min():,}",
                f"{int(np.median(them)):,}",
                f"{them.max():,}",
                str(int((them < self.least).sum())),
            ]
            for layer, them in zip(self.layers, self.tokens, strict=True)
        ]
        lines = [f"calibration tokens by expert ({self.tokens.size:,} experts):"]
        lines += aligned([head, *rows], flush_left=0)
        if self.below:
            lines.append(
                f"below {self.least:,} tokens: {first_few(self.below, _SHOWN)}; more or other "
                "text reaches more of them."
            )
        return "\n".join(lines)


def covering(tokens_SLE: Counts, number: int, least: int) -> list[int]:
    """Choose sequences that together give every expert some tokens.

    The next one is always that which adds most to the sum over experts of min(tokens, least). When
    none adds anything, those that add most to the sum of log(1 + tokens) are taken, for balance.

    Args:
        tokens_SLE: How many tokens of each sequence go to each expert of each layer.
        number: How many sequences to choose; all, if there are no more.
        least: How many tokens every expert should have.

    Returns:
        Numbers of the sequences, in the order of the text.

    Raises:
        ConfigError: A number is below 1.
    """
    for name, given in (("sequences", number), ("least", least)):
        if given < 1:
            raise ConfigError(f"{name} ({given}) must be 1 or more.")
    found = tokens_SLE.reshape(len(tokens_SLE), -1).astype(np.int64)
    left = [it for it in range(len(found)) if found[it].any()]
    have = np.zeros(found.shape[1], np.int64)
    chosen: list[int] = []
    while left and len(chosen) < number:
        after = have + found[left]
        gains = np.minimum(after, least).sum(axis=1) - np.minimum(have, least).sum()
        if not gains.any():
            gains = np.log1p(after).sum(axis=1)
        best = int(gains.argmax())
        have = after[best]
        chosen.append(left.pop(best))
    return sorted(chosen)


def coverage(
    tokens_SLE: Counts, chosen: Sequence[int], layers: tuple[int, ...], least: int
) -> Coverage:
    """What the experts get from chosen sequences."""
    return Coverage(layers, tokens_SLE[list(chosen)].sum(axis=0), least)
