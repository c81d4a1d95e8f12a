"""Text comes token by token, whole characters only, and never the beginning of a stop text."""

import pytest

from moe_megatron.serving.text_so_far import TextSoFar


def decode(tokens: list[int]) -> str:
    """Each token is a byte, as in tokenizers of bytes."""
    return bytes(tokens).decode("utf-8", "replace")


def parts(text: str, *stops: str) -> tuple[list[str], bool]:
    so_far = TextSoFar(decode, stops)
    found = []
    for byte in text.encode():
        found.append(so_far.add(byte))
        if so_far.stopped:
            return found, True
    return [*found, so_far.rest()], so_far.stopped


@pytest.mark.parametrize(
    "text", ["plain", "Gr\u00f6\u00dfe", "\u65e5\u672c\u8a9e and \U0001f642\U0001f643", "e\u0301"]
)
def test_all_text_comes_in_whole_characters(text: str) -> None:
    found, stopped = parts(text)
    assert "".join(found) == text
    assert not any("\ufffd" in it for it in found)
    assert not stopped


def test_a_stop_text_ends_the_answer_and_is_not_in_it() -> None:
    found, stopped = parts("one two END three", "END")
    assert "".join(found) == "one two "
    assert stopped


def test_of_two_stop_texts_the_earlier_counts() -> None:
    assert "".join(parts("a<b>c", "b>", "<b")[0]) == "a"


def test_what_only_began_as_a_stop_text_is_told_at_the_end() -> None:
    found, stopped = parts("for the EN", "END")
    assert "EN" not in "".join(found[:-1])
    assert "".join(found) == "for the EN"
    assert not stopped


def test_half_a_character_at_the_end_is_told_as_such() -> None:
    so_far = TextSoFar(decode)
    assert so_far.add("\u00e9".encode()[0]) == ""
    assert so_far.rest() == "\ufffd"
