"""The chat template of a tokenizer: conversations to text, as transformers renders them.

It is the template in the tokenizer's own files, run by transformers in its sandbox. Which part of
the text is an answer, this module knows only where a template marks it with `{% generation %}`.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_megatron.errors import DataError
from moe_megatron.reading import parse_json
from moe_megatron.text.folder import CONFIG_FILE, SPECIAL_TOKENS_FILE, TEMPLATE_FILE
from moe_megatron.text.tokenizer import Tokenizer

_DEFAULT, _WITH_TOOLS = "default", "tool_use"
_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_SPECIAL = re.compile(r"[a-z]+_token")

Message = Mapping[str, Any]
Span = tuple[int, int]
"""From which character of a text to which."""


class TemplateRefusalError(ValueError):
    """A template does not render a conversation; the message holds nothing that was said in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatTemplate:
    """A template, with the names of tokens that it writes; it can be sent to workers."""

    folder: Path
    """Of the tokenizer, for messages."""
    source: str
    with_tools: str
    """What is rendered where there are tools; usually the same."""
    tokens: Mapping[str, str]
    """Special tokens by name, such as "eos_token"."""
    special: frozenset[str]
    """All special tokens of the tokenizer, as they are written."""

    @property
    def fingerprint(self) -> str:
        """sha256 of all that decides what is written."""
        parts = (self.source, self.with_tools, json.dumps(dict(self.tokens), sort_keys=True))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def marks_answers(self, tools: Sequence[Message] = ()) -> bool:
        """Whether the template says itself where answers are."""
        return _MARKS.search(self._of(tools)) is not None

    def render(
        self, messages: Sequence[Message], tools: Sequence[Message] = (), *, prompt: bool = False
    ) -> str:
        """The text of a conversation.

        Args:
            messages: Turns, as transformers knows them.
            tools: JSON schemas of tools.
            prompt: Add what stands in front of the next answer.

        Raises:
            TemplateRefusalError: The template refuses it.
        """
        return self._rendered(messages, tools, prompt=prompt)[0]

    def render_marked(
        self, messages: Sequence[Message], tools: Sequence[Message] = ()
    ) -> tuple[str, list[Span]]:
        """The text of a conversation, and the spans that the template marks as answers.

        Raises:
            TemplateRefusalError: The template refuses it.
        """
        return self._rendered(messages, tools, marked=True)

    def _of(self, tools: Sequence[Message]) -> str:
        return self.with_tools if tools else self.source

    def _rendered(
        self,
        messages: Sequence[Message],
        tools: Sequence[Message],
        *,
        prompt: bool = False,
        marked: bool = False,
    ) -> tuple[str, list[Span]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        source = self._of(tools)
        try:
            texts, spans = render_jinja_template(
                conversations=[[dict(message) for message in messages]],
                tools=[dict(tool) for tool in tools] or None,
                chat_template=source,
                return_assistant_tokens_mask=marked,
                add_generation_prompt=prompt,
                **self.tokens,
            )
        except Exception as error:  # a template may raise whatever it likes
            raise TemplateRefusalError(_reason(error, source)) from error
        return str(texts[0]), [tuple(span) for span in spans[0]] if marked else []


def _reason(error: Exception, source: str) -> str:
    """Why a template refuses, in its own words if they are the same for every conversation."""
    words = " ".join(str(error).split())
    kind = type(error).__name__
    return f"it says: {words[:200]}" if words and str(error) in source else f"it raises {kind}"


def chat_template_of(tokenizer: Tokenizer) -> ChatTemplate:
    """The chat template of a tokenizer.

    Raises:
        DataError: It has none, or one that is no template.
    """
    folder, settings = tokenizer.directory, _settings(tokenizer)
    named = _templates(tokenizer, settings)
    if _DEFAULT not in named:
        has = f"; it has only {', '.join(named)}" if named else ""
        raise DataError(
            f"the tokenizer in {folder} has no chat template{has}, so nobody knows how it writes a "
            f"conversation. Use the tokenizer of a chat model, or put the template that you want "
            f"the model to learn into {folder / TEMPLATE_FILE} (in a copy of the folder)."
        )
    template = ChatTemplate(
        folder=folder,
        source=named[_DEFAULT],
        with_tools=named.get(_WITH_TOOLS, named[_DEFAULT]),
        tokens=_special_tokens(tokenizer, settings),
        special=frozenset(
            token.content
            for token in tokenizer.backend.get_added_tokens_decoder().values()
            if token.special
        ),
    )
    _check_compiles(template)
    return template


def _settings(tokenizer: Tokenizer) -> Mapping[str, Any]:
    content = tokenizer.files.get(CONFIG_FILE)
    if content is None:
        return {}
    try:
        found = parse_json(content, large_numbers=True)
    except ValueError as error:
        path = tokenizer.directory / CONFIG_FILE
        raise DataError(f"{path} is not JSON ({error}); save it again.") from error
    return found if isinstance(found, Mapping) else {}


def _templates(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> dict[str, str]:
    """Templates by name; a file of its own wins over the settings, as in transformers."""
    given = settings.get("chat_template")
    if isinstance(given, str):
        given = [{"name": _DEFAULT, "template": given}]
    named = {
        str(it.get("name")): it["template"]
        for it in given or ()
        if isinstance(it, Mapping) and isinstance(it.get("template"), str)
    }
    if TEMPLATE_FILE in tokenizer.files:
        try:
            named = {_DEFAULT: tokenizer.files[TEMPLATE_FILE].decode("utf-8")}
        except UnicodeDecodeError as error:
            path = tokenizer.directory / TEMPLATE_FILE
            raise DataError(f"{path} is not UTF-8 ({error.reason}); save it again.") from error
    return {name: text for name, text in named.items() if text.strip()}


def _special_tokens(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    content = tokenizer.files.get(SPECIAL_TOKENS_FILE)
    try:
        first = parse_json(content, large_numbers=True) if content else {}
    except ValueError:  # the loader of tokenizers reads it too, where it needs it
        first = {}
    for table in (first if isinstance(first, Mapping) else {}, settings):
        for name, token in table.items():
            text = token.get("content") if isinstance(token, Mapping) else token
            if _SPECIAL.fullmatch(name) and isinstance(text, str):
                found[name] = text
    return found


def _check_compiles(template: ChatTemplate) -> None:
    import jinja2

    try:
        template.render([{"role": "user", "content": "Hello"}], prompt=True)
    except TemplateRefusalError as refusal:
        if not isinstance(refusal.__cause__, jinja2.TemplateSyntaxError | ImportError):
            return
        where = getattr(refusal.__cause__, "lineno", None)
        line = f", line {where}" if where else ""
        raise DataError(
            f"the chat template of the tokenizer in {template.folder} is no template of Jinja "
            f"({str(refusal.__cause__)[:200]}{line}); copy it again from the model it belongs to."
        ) from refusal
