"""What every answer to a mistake is: one paragraph that says what is expected."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from moe_megatron.cli import main
from moe_megatron.errors import EXIT_CODE, MoEError


def assert_answered_in_python(make: Callable[[], object], expected: str) -> None:
    """A call raises an error of ours, which matches `expected` and has no line breaks."""
    with pytest.raises(MoEError, match=expected) as caught:
        make()
    assert "\n" not in str(caught.value)


def assert_answered_on_the_command_line(
    words: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`moe-megatron` with these words says an error in one line, which matches `expected`."""
    assert main.main(words.split()) == EXIT_CODE
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ")
    assert "\n" not in said
    assert re.search(expected, said), said


def assert_answered_in_a_paragraph(
    words: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `assert_answered_on_the_command_line`, of a command that has begun to tell what it does.

    The paragraph may list lines of the data, indented; nothing follows it.
    """
    assert main.main(words.split()) == EXIT_CODE, words
    said = capsys.readouterr().err
    before, error, paragraph = said.partition("error: ")
    assert error, said
    assert "Traceback" not in before
    first, *listed = paragraph.rstrip("\n").split("\n")
    assert all(line.startswith("  ") for line in listed), said
    assert re.search(expected, paragraph, re.DOTALL), said
    assert first.endswith((".", "?", "First:")), said


def content_of(folder: Path) -> dict[str, bytes | None]:
    """All files below a folder, hidden ones, too, and what they hold; None for folders."""
    found = sorted(folder.rglob("*"))
    return {str(it.relative_to(folder)): it.read_bytes() if it.is_file() else None for it in found}
