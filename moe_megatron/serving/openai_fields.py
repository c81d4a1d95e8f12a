"""The fields of a request of OpenAI's API, read strictly: what is not computed here is refused.

A field that changes nothing in the answer (`user`, `metadata`) is passed over. It knows no wire: a
request is a dictionary, wherever it came from.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moe_megatron.config.checks import clipped
from moe_megatron.serving.asked import Sampling
from moe_megatron.serving.problems import Problem

MOST_STOPS = 16
MOST_PROMPTS = 16
MOST_LOGPROBS = 20
_MOST_STOP = 256
_MOST_MESSAGES = 1024
_USUAL_TOKENS = 16
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
    "response_format": ({"type": "text"},),
}
"""Fields that are not computed, and what they may say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """A request for completions.

    Attributes:
        model: The model or adapter that was named; None: the one that there is.
        prompts: Texts or token ids; of a chat, one with the messages.
        max_tokens: None: what is usual, or fits.
        stops: Texts that end the answer, and are not in it.
        stream: Whether the answer is sent as it comes.
        include_usage: Whether a stream ends with the number of tokens.
        timeout: Seconds; None: what the server allows.
    """

    model: str | None
    prompts: Sequence[str | Sequence[int] | Sequence[Mapping[str, Any]]]
    max_tokens: int | None
    sampling: Sampling
    stops: tuple[str, ...]
    stream: bool
    include_usage: bool
    timeout: float | None


def completion(body: Mapping[str, Any]) -> Fields:
    """A request of `/v1/completions`.

    Raises:
        Problem: A field is missing, or not what it must be.
    """
    most = _whole(body, "max_tokens", least=1)
    shown = _whole(body, "logprobs", least=0, most=MOST_LOGPROBS)
    return _fields(
        body, _prompts(body.get("prompt")), _USUAL_TOKENS if most is None else most, shown
    )


def chat(body: Mapping[str, Any]) -> Fields:
    """A request of `/v1/chat/completions`.

    Raises:
        Problem: A field is missing, or not what it must be.
    """
    most = _whole(body, "max_completion_tokens", least=1)
    if most is None:
        most = _whole(body, "max_tokens", least=1)
    shown = None
    if _flag(body, "logprobs"):
        shown = _whole(body, "top_logprobs", least=0, most=MOST_LOGPROBS) or 0
    return _fields(body, [_messages(body.get("messages"))], most, shown)


def _fields(
    body: Mapping[str, Any], prompts: Sequence[Any], most: int | None, shown: int | None
) -> Fields:
    for name, neutral in _NEUTRAL.items():
        if body.get(name) is not None and body[name] not in neutral:
            raise Problem(
                400, f"{name} ({clipped(repr(body[name]), 60)}) is not supported; leave it out."
            )
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise _wrong("model", model, "the name of a model as text")
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise _wrong("stream_options", options, "an object")
    temperature = _number(body, "temperature", least=0, most=2)
    top_p = _number(body, "top_p", least=0, most=1)
    return Fields(
        model=model,
        prompts=prompts,
        max_tokens=most,
        sampling=Sampling(
            temperature=1.0 if temperature is None else temperature,
            top_p=1.0 if top_p is None else top_p,
            seed=_whole(body, "seed", least=-(2**63)),
            logprobs=shown,
        ),
        stops=_stops(body.get("stop")),
        stream=_flag(body, "stream"),
        include_usage=_flag(options, "include_usage"),
        timeout=_number(body, "timeout", least=0),
    )


def _prompts(given: Any) -> list[Any]:
    """One prompt or several, each a text or token ids."""
    several = given if isinstance(given, list) else [given]
    if several and all(_is_token(it) for it in several):
        several = [several]
    fine = 1 <= len(several) <= MOST_PROMPTS and all(
        isinstance(it, str) or (isinstance(it, list) and it and all(map(_is_token, it)))
        for it in several
    )
    if not fine:
        raise _wrong(
            "prompt", given, f"a text, a list of token ids, or 1 to {MOST_PROMPTS} of them"
        )
    return several


def _is_token(given: Any) -> bool:
    return isinstance(given, int) and not isinstance(given, bool)


def _messages(given: Any) -> list[dict[str, str]]:
    """Turns of a conversation, with the text of each."""
    if not isinstance(given, list) or not 1 <= len(given) <= _MOST_MESSAGES:
        raise _wrong("messages", given, f"a list of 1 to {_MOST_MESSAGES} messages")
    return [_message(it) for it in given]


def _message(given: Any) -> dict[str, str]:
    needed = 'an object such as {"role": "user", "content": "..."}'
    if not isinstance(given, dict) or not isinstance(given.get("role"), str):
        raise _wrong("a message", given, needed)
    content = given.get("content")
    if isinstance(content, list):
        parts = [it.get("text") if isinstance(it, dict) else None for it in content]
        texts = [it for it in parts if isinstance(it, str)]
        if len(texts) < len(parts):
            raise _wrong("the content of a message", content, "text; nothing else is understood")
        content = "".join(texts)
    if not isinstance(content, str):
        raise _wrong("a message", given, needed)
    return {"role": given["role"], "content": content}


def _stops(given: Any) -> tuple[str, ...]:
    several = [given] if isinstance(given, str) else (given or [])
    if (
        not isinstance(several, list)
        or len(several) > MOST_STOPS
        or not all(isinstance(it, str) and 0 < len(it) <= _MOST_STOP for it in several)
    ):
        raise _wrong(
            "stop", given, f"a text or up to {MOST_STOPS}, each of 1 to {_MOST_STOP} characters"
        )
    return tuple(several)


def _whole(body: Mapping[str, Any], name: str, *, least: int, most: int = 2**63 - 1) -> int | None:
    given = body.get(name)
    if given is None:
        return None
    if not _is_token(given) or not least <= given <= most:
        bound = f"at least {least}" if most > 2**32 else f"{least} to {most}"
        raise _wrong(name, given, f"a whole number, {bound}")
    return int(given)


def _number(
    body: Mapping[str, Any], name: str, *, least: float, most: float = math.inf
) -> float | None:
    given = body.get(name)
    if given is None:
        return None
    number = given if isinstance(given, int | float) and not isinstance(given, bool) else math.nan
    if not least <= number <= most or math.isinf(number):
        bound = f"at least {least:g}" if math.isinf(most) else f"{least:g} to {most:g}"
        raise _wrong(name, given, f"a number, {bound}")
    return float(number)


def _flag(body: Mapping[str, Any], name: str) -> bool:
    given = body.get(name)
    if given is None:
        return False
    if not isinstance(given, bool):
        raise _wrong(name, given, "true or false")
    return given


def _wrong(name: str, given: Any, needed: str) -> Problem:
    if given is None:
        return Problem(400, f"{name} is missing; it must be {needed}.")
    return Problem(400, f"{name} ({clipped(repr(given), 60)}) must be {needed}.")
