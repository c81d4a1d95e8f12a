"""Fits a value from YAML or Python to the type that a configuration field declares.

The annotation of the field is the only rule: `int`, `float`, `str`, `bool`, a `Literal` of
choices, a tuple, a mapping, a configuration class (a group of fields), or a union of these. It is
strict where a guess could hide a mistake (true is not 1, "8" is not 8) and lenient where YAML has
quirks:

* a whole number fits a float;
* numeric text fits a float, because YAML 1.1 reads `1e-3` (no dot) as text;
* a list becomes a tuple, and a path becomes text;
* `~` at the beginning of a text stands for a home folder.

`Annotated` adds a range (`within`). A class with a class method `conformed` converts values itself.
This module does not know files or the names of sections.
"""

import dataclasses
import functools
import math
import os
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from moe_megatron.config.checks import (
    clipped,
    in_one_line,
    join_words,
    nearest,
    qualified,
)
from moe_megatron.config.within import Within, range_of
from moe_megatron.errors import ConfigError
from moe_megatron.files import user_path

_WORDS: dict[object, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    type(None): "null",
}
_PLURALS: dict[object, str] = {int: "whole numbers", float: "numbers", str: "texts"}


_MOST_BITS = 256


class _MisfitError(Exception):
    """The value does not fit; `convert` writes the message."""


def conform(config: object) -> None:
    """Fit every field of a frozen dataclass to its annotation, in place, and check its range.

    Call it first in `__post_init__`, so that a configuration made in Python obeys the same rules as
    one read from YAML.

    Raises:
        ConfigError: If a value does not fit the type of its field, or is out of its range.
    """
    ranges = ranges_of(type(config))
    for name, annotation in annotations_of(type(config)).items():
        value = convert(getattr(config, name), annotation, qualified(config, name))
        if name in ranges:
            _check_range(value, ranges[name], qualified(config, name))
        object.__setattr__(config, name, value)


def annotations_of(config_type: type) -> dict[str, Any]:
    """The fields of a configuration class with their resolved types, in order."""
    return _annotations(config_type)


def _check_range(value: object, wanted: Within, where: str) -> None:
    """Refuse a value out of its range; None is in any, as whether it is allowed is for the type."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{where} declares a range, {wanted}, but is {show(value)}, no number.")
    if not wanted.holds(value):
        raise ConfigError(f"{where} must be {wanted}, not {show(value)}.")


def ranges_of(config_type: type) -> Mapping[str, Within]:
    """The fields of a configuration class that declare a range, with their ranges."""
    return _ranges(config_type)


@functools.cache
def _ranges(config_type: Any) -> Mapping[str, Within]:
    hints = get_type_hints(config_type, include_extras=True)
    fields = (field.name for field in dataclasses.fields(config_type))
    return {name: it for name in fields if (it := range_of(hints[name])) is not None}


@functools.cache
def _annotations(config_type: Any) -> dict[str, Any]:
    hints = get_type_hints(config_type)
    return {field.name: hints[field.name] for field in dataclasses.fields(config_type)}


def group_of(annotation: Any) -> type | None:
    """The configuration class that a field of this type nests, if any."""
    for option in get_args(annotation) or (annotation,):
        if dataclasses.is_dataclass(option) and not hasattr(option, "conformed"):
            return option if isinstance(option, type) else None
    return None


def convert(value: object, annotation: Any, where: str) -> Any:
    """Fit one value to one annotation.

    Args:
        value: What was given.
        annotation: The type of the field.
        where: The name of the field for the message, for example "moe.top_k".

    Returns:
        The value, as exactly the type that the annotation names.

    Raises:
        ConfigError: If it does not fit; the message says what was given and what is needed.
    """
    if get_origin(annotation) is Mapping:
        return _convert_mapping(value, get_args(annotation)[1], where)
    if hasattr(annotation, "conformed"):
        return annotation.conformed(value, where)
    group = group_of(annotation)
    if group is not None and isinstance(value, Mapping):
        return group(**read_group(value, group, where))
    try:
        return _fit(value, annotation)
    except _MisfitError:
        choices = _choices(annotation)
        hint = nearest(value, choices) if isinstance(value, str) else ""
        needed = describe(annotation)
        if isinstance(value, float) and "a number" in _descriptions(annotation):
            needed = "a finite number"  # it is nan or infinite, else it would fit
        given = clipped(repr(value)) if choices and isinstance(value, str) else show(value)
        raise ConfigError(f"{where} needs {needed}, not {given}.{hint}") from None


def _convert_mapping(value: object, item_type: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} needs a mapping of names to values, not {show(value)}.")
    for key in value:
        if not isinstance(key, str):
            raise ConfigError(f"{where} needs text for the name of each entry, not {show(key)}.")
    return {key: convert(item, item_type, f"{where}.{key}") for key, item in value.items()}


def read_group(value: Mapping[str, object], group: type, where: str) -> dict[str, Any]:
    """Convert the fields of a group that a mapping names; nested groups stay mappings.

    Raises:
        ConfigError: For an unknown key or a value of the wrong type.
    """
    annotations = annotations_of(group)
    found: dict[str, Any] = {}
    for key, item in value.items():
        if key not in annotations:
            hint = nearest(str(key), annotations)
            hint = hint or f" Known are: {join_words(list(annotations), 'and')}."
            raise ConfigError(f"unknown key '{key}' in {where}.{hint}")
        found[key] = read(item, annotations[key], f"{where}.{key}")
    return found


def read(value: object, annotation: Any, where: str) -> Any:
    """Fit one value of a file, which may give only some fields of a group.

    Returns:
        As `convert`, except that a group becomes a mapping of the fields that are given.
    """
    if hasattr(annotation, "read_part"):
        return annotation.read_part(value, where)
    group = group_of(annotation)
    if group is not None and isinstance(value, Mapping):
        return read_group(value, group, where)
    return convert(value, annotation, where)


def _fit(value: object, annotation: Any) -> Any:
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return _fit_first(value, get_args(annotation))
    if origin is Literal:
        if isinstance(value, str) and value in get_args(annotation):
            return value
        raise _MisfitError
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _MisfitError
        return tuple(_fit(item, get_args(annotation)[0]) for item in value)
    if annotation is float:
        return _fit_float(value)
    if annotation is str and isinstance(value, os.PathLike | str):
        text = os.fspath(value)
        return str(user_path(text)) if text.startswith("~") else text
    # `type`, not `isinstance`: in Python True is an int, in a configuration it is a mistake.
    if type(value) is annotation:
        return value
    raise _MisfitError


def _fit_first(value: object, options: tuple[Any, ...]) -> Any:
    for option in options:
        try:
            return _fit(value, option)
        except _MisfitError:
            continue
    raise _MisfitError


def _fit_float(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _MisfitError
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise _MisfitError from None
    if not math.isfinite(number):
        raise _MisfitError
    return number


def describe(annotation: Any) -> str:
    """What a field of this type needs, in words: "a whole number or null"."""
    return join_words(_descriptions(annotation))


def _descriptions(annotation: Any) -> list[str]:
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return [word for option in get_args(annotation) for word in _descriptions(option)]
    if origin is Literal:
        return [f"'{choice}'" for choice in get_args(annotation)]
    if origin is tuple:
        item = get_args(annotation)[0]
        return [f"a list of {_PLURALS.get(item, 'values')}"]
    return [_WORDS.get(annotation, f"a {getattr(annotation, '__name__', annotation)}")]


def _choices(annotation: Any) -> list[str]:
    """The strings that an annotation's `Literal`s allow; empty if it has none."""
    if get_origin(annotation) in (Union, types.UnionType):
        return [choice for option in get_args(annotation) for choice in _choices(option)]
    return list(get_args(annotation)) if get_origin(annotation) is Literal else []


def show(value: object) -> str:
    """A value as a message shows it, in the words of YAML and not of Python."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"{clipped(repr(value))} (text)"
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        return f"a whole number of {value.bit_length()} bits"  # Python refuses to write long ones
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"the list {clipped(repr(list(value)))}"
    if isinstance(value, Mapping):
        return "a mapping"
    return f"{clipped(in_one_line(repr(value)))} ({type(value).__name__})"
