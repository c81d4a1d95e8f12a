"""Records which experts a model needs, while it computes something else or for the trace's sake.

Attention is causal, so the experts of a token do not depend on those after it: one forward pass
over a text shows what decoding it would need, token by token.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from moe_megatron.config.checks import join_words
from moe_megatron.errors import ConfigError
from moe_megatron.inference.cache.trace import Pass, Trace, Traced
from moe_megatron.inference.transformers_experts import Place

TOKEN, PASS = "token", "pass"


class Recorder:
    """Forward passes as they happen; of each, the experts of every token in every layer."""

    def __init__(self, about: Traced, first_layer: int) -> None:
        self.about = about
        self._first = first_layer
        self._passes: list[list[list[list[int]]]] = []

    def watch(self, layer: int, experts_TK: Tensor) -> None:
        """Note what a layer needs for each token."""
        if layer == self._first:
            self._passes.append([])
        self._passes[-1].append(experts_TK.tolist())

    def trace(self, each: str = TOKEN) -> Trace:
        """What was recorded.

        Args:
            each: "token" for one entry a token, as in decoding one sequence; "pass" for one a
                forward pass with whatever was in it, as in serving several together.

        Raises:
            ConfigError: `each` is neither.
        """
        if each not in (TOKEN, PASS):
            raise ConfigError(f"each ({each!r}) must be {join_words([TOKEN, PASS])}.")
        whole = [it for it in self._passes if len(it) == self.about.layers]
        found = (self._tokens(it) if each == TOKEN else iter((self._merged(it),)) for it in whole)
        return Trace(self.about, tuple(entry for entries in found for entry in entries))

    def _tokens(self, layers: list[list[list[int]]]) -> Iterator[Pass]:
        """Tokens in their order, each with its experts of every layer."""
        return (tuple(map(self._experts, token)) for token in zip(*layers, strict=True))

    def _merged(self, layers: list[list[list[int]]]) -> Pass:
        """All tokens together."""
        return tuple(self._experts(it for token in tokens for it in token) for tokens in layers)

    def _experts(self, chosen: Iterable[int]) -> tuple[int, ...]:
        return tuple(sorted({it for it in chosen if 0 <= it < self.about.experts}))


@contextmanager
def watching(places: Sequence[Place], recorder: Recorder) -> Iterator[Recorder]:
    """Have a recorder told of everything that goes through these places."""
    for place in places:
        place.watch = recorder.watch
    try:
        yield recorder
    finally:
        for place in places:
            place.watch = None
