"""Which part of a conversation's text its answers are, exactly or not at all.

    answer i = text(turns up to i) without text(turns before i, and what stands before an answer)

Each of these texts must be how the next begins; where it is not, as in templates that change
earlier turns, there is no exact span, and the sample is refused. A template that marks answers with
`{% generation %}` is taken at its word.
"""

from typing import Any

from moe_megatron.data.instructions.turns import BadSampleError, Conversation
from moe_megatron.text.chat_template import ChatTemplate, Span, TemplateRefusalError


def text_with_answers(template: ChatTemplate, sample: Conversation) -> tuple[str, list[Span]]:
    """The text of a conversation, and the spans of the answers to learn, in order.

    Raises:
        BadSampleError: The template refuses the conversation, or its spans cannot be told.
    """
    marked = template.marks_answers(sample.tools)
    text, spans = (_marked if marked else _prefix_by_prefix)(template, sample)
    _check_tools(template, sample, text)
    return text, spans


def _check_tools(template: ChatTemplate, sample: Conversation, text: str) -> None:
    """Refuse a conversation with tools whose template writes the same without them."""

    def writes_the_same(messages: list[dict[str, Any]], *, tools: bool) -> bool:
        try:
            return template.render(messages, sample.tools if tools else ()) == text
        except TemplateRefusalError:
            return False

    if sample.tools and writes_the_same(sample.messages, tools=False):
        raise BadSampleError("the chat template has no place for tools, which the row describes")
    silent = [{**message, "tool_calls": None} for message in sample.messages]
    calls = any(message.get("tool_calls") for message in sample.messages)
    if calls and writes_the_same(silent, tools=True):
        raise BadSampleError(
            "the chat template has no place for calls of tools, which the row makes"
        )


def _marked(template: ChatTemplate, sample: Conversation) -> tuple[str, list[Span]]:
    answers = [turn for turn in sample.turns if turn.is_answer]
    try:
        text, spans = template.render_marked(sample.messages, sample.tools)
    except TemplateRefusalError as refusal:
        raise BadSampleError(_refused(sample, len(sample.turns), refusal)) from None
    if all(turn.learned for turn in answers):
        return text, spans
    if len(spans) != len(answers):
        raise BadSampleError(
            f"the chat template marks {len(spans)} answers of {len(answers)}, so those of weight "
            "0 cannot be told from others"
        )
    return text, [span for span, turn in zip(spans, answers, strict=True) if turn.learned]


def _prefix_by_prefix(template: ChatTemplate, sample: Conversation) -> tuple[str, list[Span]]:
    turns, messages = sample.turns, sample.messages

    def text_of(number: int, *, prompt: bool = False) -> str:
        try:
            return template.render(messages[:number], sample.tools, prompt=prompt)
        except TemplateRefusalError as refusal:
            raise BadSampleError(_refused(sample, number, refusal)) from None

    whole, spans = text_of(len(turns)), []
    for number, turn in enumerate(turns):
        if not (turn.is_answer and turn.learned):
            continue
        before, through = text_of(number, prompt=True), text_of(number + 1)
        if not whole.startswith(through) or not through.startswith(before):
            raise BadSampleError(
                f"the chat template is not stable: what it writes for the first {number + 1} turns "
                "is not how the whole conversation begins, so the answer cannot be told exactly; "
                "use a template with {% generation %} marks"
            )
        spans.append((len(before), _end(whole, len(before), len(through), template)))
    return whole, spans


def _end(text: str, start: int, end: int, template: ChatTemplate) -> int:
    """The end of an answer, without white space after the token that ends a turn."""
    said = text[start:end].rstrip()
    return start + len(said) if said.endswith(tuple(template.special)) else end


def _refused(sample: Conversation, number: int, refusal: TemplateRefusalError) -> str:
    roles = " ".join(turn.role for turn in sample.turns[:number])
    return f"the chat template refuses the turns {roles[:100] or '(none)'}: {refusal}"
