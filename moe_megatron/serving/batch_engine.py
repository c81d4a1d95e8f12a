"""`Engine`: a model on a thread of its own, which goes on with many texts at once.

A step that fails is tried again with one request at a time, so that one request whose expert cannot
be read does not take the others with it. It knows tokens, and neither texts nor wires.
"""

import itertools
import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from moe_megatron.errors import MoEError
from moe_megatron.serving.asked import Asked, Deliver, Failed, Finished
from moe_megatron.serving.batches import Batches
from moe_megatron.serving.sampling import Chooser, EachInItsWay

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_BROKEN = "the model failed to compute this request; the server's log says why."


class QueueFullError(Exception):
    """As many requests wait as may."""


class Watches(Protocol):
    """Who is told what an engine does, on its thread."""

    def step(self, requests: int, tokens: int) -> None:
        """A step begins, with so many requests and tokens."""

    def token(self, seconds: float, *, first: bool) -> None:
        """A request has got a token, so long after the one before, or after it came."""

    def prompt(self, tokens: int) -> None:
        """A request has come."""


@dataclass(slots=True)
class _Running:
    """A request that the batches have."""

    asked: Asked
    deliver: Deliver
    chooser: Chooser
    keywords: dict[str, int]
    since: float
    """When it came, or got its last token."""
    tokens: list[int] = field(default_factory=list)
    """All that it has got."""
    here: int = 0
    """Of these, since it was last given to the batches."""


class Engine:
    """A model that goes on with texts.

    Raises:
        BackendUnavailableError: Transformers cannot batch this model.

    Args:
        model: Of transformers; its attention must be sdpa.
        ends: Tokens that end a text.
        context: Most tokens of a request, with its prompt.
        batch: Requests that are computed together.
        queue: Requests that may wait.
        watches: Who is told what happens.
        adapted: Is told the adapter and the number of tokens of each request in the next step, in
            their order; None of a model without adapters.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        *,
        ends: Collection[int],
        context: int,
        batch: int,
        queue: int,
        watches: Watches,
        adapted: Callable[[Sequence[tuple[str | None, int]]], None] | None = None,
    ) -> None:
        self.context = context
        self._ends = sorted(ends)
        self._batch, self._queue = batch, queue
        self._watches = watches
        self._adapted = adapted
        self._sampler = EachInItsWay()
        self._running: dict[str, _Running] = {}
        self._lock = threading.Lock()
        self._names = itertools.count()
        self._suspects: set[str] = set()
        self._batches = Batches(
            model,
            self._sampler,
            most=batch,
            context=context,
            sharing=adapted is None,
            took=self._took,
            stepped=self._stepped,
            failed=self._failed,
        )
        self._batches.begin()

    @property
    def alive(self) -> bool:
        """Whether it computes what it is given."""
        return bool(self._batches.is_running())

    @property
    def running(self) -> int:
        """Requests that are computed or wait."""
        return len(self._running)

    def submit(self, asked: Asked, deliver: Deliver) -> str:
        """Go on with a text; from any thread.

        Args:
            asked: What to do.
            deliver: Is told each token and the end.

        Returns:
            Its name, for `cancel`.

        Raises:
            QueueFullError: Too many wait.
        """
        chooser = Chooser(asked.sampling)
        with self._lock:
            if len(self._running) >= self._batch + self._queue:
                raise QueueFullError
            name = str(next(self._names))
            running = _Running(
                asked, deliver, chooser, self._sampler.add(chooser), time.monotonic()
            )
            self._running[name] = running
        self._watches.prompt(len(asked.prompt))
        self._give(name, running)
        if not self.alive:
            self._end(name, Failed(_BROKEN))
        return name

    def cancel(self, name: str) -> None:
        """Stop computing a request; nothing more is delivered. From any thread."""
        with self._lock:
            running = self._running.pop(name, None)
        if running is not None:
            self._sampler.remove(running.keywords)
            self._batches.cancel_request(name)

    def close(self) -> None:
        """Stop; requests that are not finished fail."""
        self._batches.stop(block=True, hard_stop=True)

    def _give(self, name: str, running: _Running) -> None:
        """Have the batches compute what is left of a request."""
        running.here = 0
        self._batches.add_request(
            [*running.asked.prompt, *running.tokens],
            request_id=name,
            max_new_tokens=running.asked.max_tokens - len(running.tokens),
            eos_token_id=self._ends,
            streaming=True,
            **running.keywords,
        )

    # --- on the thread of the batches -------------------------------------------------------

    def _stepped(self, step: Sequence[tuple[str, int]]) -> None:
        if self._adapted is not None:
            known = [(self._running.get(name), tokens) for name, tokens in step]
            self._adapted([(it.asked.adapter if it else None, tokens) for it, tokens in known])
        self._watches.step(len(step), sum(tokens for _, tokens in step))

    def _took(self, output: Any) -> None:
        name = output.request_id
        running = self._running.get(name)
        if running is None:  # cancelled
            return
        if output.error is not None:
            self._end(name, Failed(_BROKEN))
            return
        for token in output.generated_tokens[running.here :]:
            now = time.monotonic()
            self._watches.token(now - running.since, first=not running.tokens)
            running.since = now
            running.here += 1
            running.tokens.append(token)
            running.deliver(running.chooser.told(token))
        self._cleared(name)
        if output.is_finished():
            stopped = running.tokens[-1] in self._ends
            self._end(name, Finished("stop" if stopped else "length"))

    def _failed(self, names: Sequence[str], error: Exception) -> None:
        if len(names) == 1:
            problem = str(error) if isinstance(error, MoEError) else _BROKEN
            if not isinstance(error, MoEError):
                logger.error("a step of the model failed", exc_info=error)
            self._end(names[0], Failed(problem))
            self._cleared(names[0])
            return
        for name in names:
            running = self._running.get(name)
            if running is not None:
                self._suspects.add(name)
                self._give(name, running)
        self._batches.at_most(1)

    def _cleared(self, name: str) -> None:
        """A request was computed, or failed, without others."""
        if name in self._suspects:
            self._suspects.discard(name)
        self._suspects &= self._running.keys()
        if not self._suspects:
            self._batches.at_most(self._batch)

    def _end(self, name: str, event: Finished | Failed) -> None:
        with self._lock:
            running = self._running.pop(name, None)
        if running is not None:
            self._sampler.remove(running.keywords)
            running.deliver(event)
