"""What an engine is asked for, and what it tells while it works; it knows no wire."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How each token is chosen.

    Attributes:
        temperature: 0 always takes the most probable.
        top_p: From the most probable tokens that have this much probability together.
        seed: Two requests of the same seed and text choose alike; None for one of chance.
        logprobs: How many of the most probable tokens are told with each; None tells none.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    logprobs: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One text to go on with.

    Attributes:
        prompt: Token ids, at least one.
        max_tokens: After how many tokens it ends.
        sampling: How they are chosen.
        adapter: Name of the adapter that it is computed with; None for the model as it is.
    """

    prompt: Sequence[int]
    max_tokens: int
    sampling: Sampling = Sampling()
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class Chance:
    """A token with the natural logarithm of its probability."""

    token: int
    logprob: float


@dataclass(frozen=True, slots=True)
class Token:
    """The next token, and its probability where it was asked for."""

    token: int
    logprob: float | None = None
    most_probable: tuple[Chance, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """The end: "stop" by a token that ends texts, or "length"."""

    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The model could not compute this one."""

    problem: str


Event = Token | Finished | Failed
Deliver = Callable[[Event], None]
"""Is called on the engine's thread: it must be quick, and must not raise."""
