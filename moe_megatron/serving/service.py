"""`Service`: requests in OpenAI's fields to pieces of answers, whatever wire they came over.

It knows names of models, texts, limits and deadlines. A request that nobody waits for any more
leaves the engine at once.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from moe_megatron.config.checks import join_words, nearest
from moe_megatron.errors import DataError
from moe_megatron.serving.asked import Asked, Event, Failed, Finished, Token
from moe_megatron.serving.batch_engine import Engine, QueueFullError
from moe_megatron.serving.openai_fields import Fields
from moe_megatron.serving.problems import Problem, busy, failed, late, leaving
from moe_megatron.serving.text_so_far import TextSoFar
from moe_megatron.text.chat_template import (
    ChatTemplate,
    TemplateRefusalError,
    chat_template_of,
)
from moe_megatron.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer.

    Attributes:
        index: Of the prompt that it answers.
        text: May be "".
        tokens: Those that came with it.
        finish: "stop" or "length" in the last piece of a prompt.
    """

    index: int
    text: str
    tokens: tuple[Token, ...] = ()
    finish: str | None = None


class Service:
    """What a server answers with.

    Args:
        engine: Computes tokens.
        tokenizer: Of the model.
        name: Of the model.
        adapters: Names of its adapters.
        deadline: Most seconds of a request.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        *,
        name: str,
        adapters: Sequence[str] = (),
        deadline: float,
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.models = (name, *adapters)
        """Names that a request may give; the first is the model itself."""
        self.leaving = False
        """Whether no request is taken any more."""
        self._deadline = deadline
        self._template: ChatTemplate | DataError
        try:
            self._template = chat_template_of(tokenizer)
        except DataError as error:
            self._template = error
        self._decode = partial(tokenizer.decode, skip_special_tokens=True)

    def written(self, token: int) -> str:
        """The text of one token."""
        return self.tokenizer.decode([token])

    def answer(self, fields: Fields) -> "Answer":
        """Begin to answer; on the event loop.

        Raises:
            Problem: The request cannot be answered, or not now.
        """
        if self.leaving:
            raise leaving()
        if not self.engine.alive:
            raise failed("the engine has stopped; start the server again.")
        adapter = self._adapter(fields.model)
        prompts = [self._ids(it) for it in fields.prompts]
        asked = [
            Asked(
                prompt=ids,
                max_tokens=self._most(fields, ids),
                sampling=fields.sampling,
                adapter=adapter,
            )
            for ids in prompts
        ]
        seconds = self._deadline if fields.timeout is None else min(fields.timeout, self._deadline)
        texts = [TextSoFar(self._decode, fields.stops) for _ in asked]
        return Answer(self.engine, asked, texts, seconds, model=fields.model or self.models[0])

    def _adapter(self, model: str | None) -> str | None:
        if model is None or model == self.models[0]:
            return None
        if model in self.models:
            return model
        raise Problem(
            404,
            f"there is no model or adapter {model!r:.80}; this server has "
            f"{join_words(self.models, 'and')}.{nearest(model, self.models)}",
            code="model_not_found",
        )

    def _ids(self, prompt: str | Sequence[int] | Sequence[Mapping[str, Any]]) -> list[int]:
        try:
            if isinstance(prompt, str):
                ids = self.tokenizer.encode(prompt)
            elif prompt and isinstance(prompt[0], Mapping):
                ids = self._conversation(prompt)  # type: ignore[arg-type]
            else:
                ids = [int(it) for it in prompt]  # type: ignore[arg-type]
        except DataError as error:
            raise Problem(400, str(error)) from error
        if not ids:
            raise Problem(400, "the prompt holds no token; give some text.")
        unknown = [it for it in ids if not 0 <= it < self.tokenizer.vocab_size]
        if unknown:
            raise Problem(
                400,
                f"the prompt has the token {unknown[0]}, and tokens of this model are 0 to "
                f"{self.tokenizer.vocab_size - 1}.",
            )
        return ids

    def _conversation(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        if isinstance(self._template, DataError):
            raise Problem(400, f"{self._template} Or ask /v1/completions with a plain text.")
        try:
            text = self._template.render(messages, prompt=True)
        except TemplateRefusalError as error:
            raise Problem(
                400, f"the model's chat template refuses this conversation: {error}."
            ) from error
        return self.tokenizer.encode_batch([text])[0]

    def _most(self, fields: Fields, ids: Sequence[int]) -> int:
        """How many tokens are computed after a prompt."""
        room = self.engine.context - len(ids)
        if room < 1 or (fields.max_tokens is not None and fields.max_tokens > room):
            more = "" if fields.max_tokens is None else f" and max_tokens is {fields.max_tokens}"
            raise Problem(
                400,
                f"the prompt has {len(ids)} tokens{more}, and this server computes at most "
                f"{self.engine.context} tokens of a request, prompt included (--context); shorten "
                "the prompt or ask for fewer tokens.",
                code="context_length_exceeded",
            )
        return room if fields.max_tokens is None else fields.max_tokens


class Answer:
    """One request while it is answered.

    Raises:
        Problem: The queue is full.
    """

    def __init__(
        self,
        engine: Engine,
        asked: Sequence[Asked],
        texts: Sequence[TextSoFar],
        seconds: float,
        *,
        model: str,
    ) -> None:
        self.model = model
        self.prompt_tokens = sum(len(it.prompt) for it in asked)
        self.completion_tokens = 0
        self._engine, self._texts = engine, texts
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._seconds = seconds
        self._until = self._loop.time() + seconds
        self._names: dict[int, str] = {}
        for index, it in enumerate(asked):
            try:
                self._names[index] = engine.submit(it, partial(self._deliver, index))
            except QueueFullError as error:
                self.close()
                raise busy(1) from error

    async def pieces(self) -> AsyncIterator[Piece]:
        """The answer as it comes, of all prompts at once.

        Raises:
            Problem: It took too long, or could not be computed.
        """
        try:
            while self._names:
                index, event = await self._next()
                if index in self._names and (piece := self._piece(index, event)) is not None:
                    yield piece
        finally:
            self.close()

    def close(self) -> None:
        """Compute no more of it."""
        for name in self._names.values():
            self._engine.cancel(name)
        self._names.clear()

    async def _next(self) -> tuple[int, Event]:
        left = self._until - self._loop.time()
        try:
            return await asyncio.wait_for(self._queue.get(), max(left, 0))
        except TimeoutError as error:
            raise late(self._seconds) from error

    def _piece(self, index: int, event: Event) -> Piece | None:
        text = self._texts[index]
        if isinstance(event, Failed):
            del self._names[index]
            raise failed(event.problem)
        if isinstance(event, Finished):
            del self._names[index]
            rest = text.rest()
            return Piece(index, rest, finish="stop" if text.stopped else event.reason)
        self.completion_tokens += 1
        piece = text.add(event.token)
        if text.stopped:
            self._engine.cancel(self._names.pop(index))
            return Piece(index, piece, (event,), finish="stop")
        if piece or event.logprob is not None:
            return Piece(index, piece, (event,))
        return None

    def _deliver(self, index: int, event: Event) -> None:
        """Hand an event over; on the engine's thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (index, event))
