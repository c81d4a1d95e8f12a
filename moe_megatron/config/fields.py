"""What a field declares in addition to its type: what it changes, and its Megatron flag.

Both are declared with the field, so that code that compares models, rejects checkpoints or writes
command lines derives its table from here and cannot miss a field. It knows no field by name.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from moe_megatron.config.conform import annotations_of, group_of

Changes = Literal["tensors", "function", "training"]
"""What changing a field affects: "tensors", the set of parameters and their shapes; "function",
only what they compute; "training", only how they are trained or executed."""

CHANGES: tuple[Changes, ...] = get_args(Changes)

Values = tuple[str, ...]
"""The words that follow a flag on the command line."""


def _first(values: Values) -> Any:
    return values[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Flag:
    """One Megatron flag that a field is written as and read from."""

    name: str
    """Without the leading dashes."""
    write: Callable[[Any], Values | None] = lambda value: None if value is None else (str(value),)
    """From the value of the field to the words after the flag; None leaves the flag out."""
    read: Callable[[Values], Any] = _first
    """From those words to the value, or to `NOT_OURS`."""
    takes_value: bool = True
    """Whether the flag takes exactly one word, or none."""
    when: Callable[[Any], bool] = lambda section: True
    """Whether to write the flag, given the configuration section that holds the field."""
    implies: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Values that reading the flag gives to fields of the same group which no other flag sets."""


NOT_OURS = object()
"""Result of `Flag.read` for words that the field cannot express; the flag then stays a flag."""


def setting(
    default: Any = dataclasses.MISSING,
    *,
    changes: Changes | None = None,
    flag: str | Flag | tuple[Flag, ...] | None = None,
    adjustable: bool = False,
) -> Any:
    """Declare a field of a configuration class.

    Args:
        default: Its default value.
        changes: What changing the value affects; for the fields of a model.
        flag: Megatron's flag for it. A name means a flag with one value, or a switch if the field
            is a bool.
        adjustable: Whether a checkpoint may be loaded with another value, although that changes
            what the model computes.
    """
    metadata = {"changes": changes, "flag": flag, "adjustable": adjustable}
    return dataclasses.field(default=default, metadata=metadata)


def switch(name: str, on: Any = True, off: Any = False, **implies: Any) -> Flag:
    """A flag without a value that stands for `field == on`."""
    return Flag(
        name=name,
        write=lambda value: () if value == on and value != off else None,
        read=lambda _: on,
        takes_value=False,
        implies=implies,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """A declared field and its path."""

    path: tuple[str, ...]
    """Names from the section down, such as ("latent_attention", "kv_lora_rank")."""
    annotation: Any
    changes: Changes | None
    flags: tuple[Flag, ...]
    adjustable: bool

    def value(self, section: Any) -> Any:
        """The value in a section; None if the field's group is absent."""
        for name in self.path:
            section = None if section is None else getattr(section, name)
        return section

    def group(self, section: Any) -> Any:
        """The group in a section that the field belongs to; None if it is absent."""
        for name in self.path[:-1]:
            section = None if section is None else getattr(section, name)
        return section


def settings_of(config_type: type, path: tuple[str, ...] = ()) -> Iterator[Setting]:
    """Every field of a section, in order; the fields of a group follow the group itself."""
    annotations = annotations_of(config_type)
    for field in dataclasses.fields(config_type):
        annotation, meta = annotations[field.name], field.metadata
        here = (*path, field.name)
        yield Setting(
            path=here,
            annotation=annotation,
            changes=meta.get("changes"),
            flags=_flags(meta.get("flag"), annotation),
            adjustable=meta.get("adjustable", False),
        )
        group = group_of(annotation)
        if group is not None:
            yield from settings_of(group, here)


def _flags(flag: str | Flag | tuple[Flag, ...] | None, annotation: Any) -> tuple[Flag, ...]:
    if flag is None:
        return ()
    if isinstance(flag, tuple):
        return flag
    if isinstance(flag, Flag):
        return (flag,)
    kinds = getattr(annotation, "__args__", (annotation,))
    if bool in kinds:
        return (switch(flag),)
    return (Flag(name=flag, read=int_or_text if int in kinds else _first),)


def int_or_text(values: Values) -> Any:
    """The value as an integer, or unchanged if it is none, so that the field's check reports it."""
    try:
        return int(values[0])
    except ValueError:
        return values[0]


def float_or_text(values: Values) -> Any:
    """The value as a float, or unchanged if it is none, so that the field's check reports it."""
    try:
        return float(values[0])
    except ValueError:
        return values[0]
