"""Values against types: what fits, what is refused, and in which words."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

from moe_megatron.config.conform import convert
from moe_megatron.errors import ConfigError

Color = Literal["red", "green"]


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (3, int, 3),
        (3, float, 3.0),
        ("1e-3", float, 0.001),
        (" 2.5 ", float, 2.5),
        ("1e-3", str, "1e-3"),
        (Path("a/b"), str, "a/b"),
        (True, bool, True),
        (None, int | None, None),
        ([1, 2], tuple[int, ...], (1, 2)),
        ([1, "2"], tuple[float, ...], (1.0, 2.0)),
        ([1, 0], int | tuple[int, ...], (1, 0)),
        (4, int | tuple[int, ...], 4),
        ("red", Color, "red"),
        (None, Color | None, None),
        ({"a": 1}, Mapping[str, int], {"a": 1}),
    ],
)
def test_convert_fitting_value_becomes_the_type(
    value: object, annotation: Any, expected: object
) -> None:
    converted = convert(value, annotation, "x")
    assert converted == expected
    assert type(converted) is type(expected)


@pytest.mark.parametrize(
    ("value", "annotation", "message"),
    [
        (True, int, "x needs a whole number, not true."),
        (1, bool, "x needs true or false, not 1."),
        ("8", int, "x needs a whole number, not '8' (text)."),
        (2.0, int, "x needs a whole number, not 2.0."),
        (False, float, "x needs a number, not false."),
        ("fast", float, "x needs a number, not 'fast' (text)."),
        ("nan", float, "x needs a number, not 'nan' (text)."),
        (float("inf"), float, "x needs a finite number, not inf."),
        (10**400, float, "x needs a number, not a whole number of 1329 bits."),
        (7, str, "x needs text, not 7."),
        (None, int, "x needs a whole number, not null."),
        ("a", int | None, "x needs a whole number or null, not 'a' (text)."),
        (1, tuple[str, ...], "x needs a list of texts, not 1."),
        ([1, "a"], tuple[int, ...], "x needs a list of whole numbers, not the list [1, 'a']."),
        ("a", int | tuple[int, ...], "x needs a whole number or a list of whole numbers, not"),
        ("rad", Color, "x needs 'red' or 'green', not 'rad'. Did you mean 'red'?"),
        ("blue!", Color | None, "x needs 'red', 'green' or null, not 'blue!'."),
        (True, Color, "x needs 'red' or 'green', not true."),
        ({}, int, "x needs a whole number, not a mapping."),
        ({1}, int, "x needs a whole number, not {1} (set)."),
        ([], Mapping[str, int], "x needs a mapping of names to values, not the list []."),
        ({1: 1}, Mapping[str, int], "x needs text for the name of each entry, not 1."),
        ({"a": "b"}, Mapping[str, int], "x.a needs a whole number, not 'b' (text)."),
    ],
)
def test_convert_misfit_says_what_was_given_and_needed(
    value: object, annotation: Any, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        convert(value, annotation, "x")
    assert str(caught.value).startswith(message)
