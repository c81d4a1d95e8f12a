"""What every answer to a mistake is: one paragraph that says what is expected."""

import re
from collections.abc import Callable

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
