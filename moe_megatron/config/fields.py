"""What a configuration field says beside its type: what it changes, and which Megatron flag it is.

Both stand where the field is declared, so that what compares models, refuses checkpoints or writes
command lines derives its table from here and cannot forget a field. It knows no field by name.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from moe_megatron.config.conform import annotations_of, group_of

Changes = Literal["tensors", "function", "training"]
"""What another value of a field changes: which parameters there are and their shapes; only what
they compute; only how they are trained or executed."""

CHANGES: tuple[Changes, ...] = get_args(Changes)

Values = tuple[str, ...]
"""The words behind a flag."""


def _first(values: Values) -> Any:
    return values[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Flag:
    """One Megatron flag that a field is written as and read from."""

    name: str
    """Without the leading dashes."""
    write: Callable[[Any], Values | None] = lambda value: None if value is None else (str(value),)
    """From the value of the field to the words behind the flag; None leaves the flag out."""
    read: Callable[[Values], Any] = _first
    """From those words to the value, or to `NOT_OURS`."""
    takes_value: bool = True
    """Whether exactly one word stands behind the flag, or none."""
    when: Callable[[Any], bool] = lambda section: True
    """Whether it is written, by the section of the configuration that the field is in."""
    implies: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What reading it says of other fields of the same group, where no other flag says it."""


NOT_OURS = object()
"""What `Flag.read` gives for words that no value of the field stands for: the flag stays a flag."""


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
        changes: What another value changes; for the fields of a model.
        flag: Megatron's flag for it: a name for a field that is one word behind the flag, or a
            switch where the field is true or false.
        adjustable: Whether a checkpoint may be loaded with another value although that changes what
            the model computes.
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
    """A field as it was declared, and where."""

    path: tuple[str, ...]
    """Names from the section down, such as ("latent_attention", "kv_lora_rank")."""
    annotation: Any
    changes: Changes | None
    flags: tuple[Flag, ...]
    adjustable: bool

    def value(self, section: Any) -> Any:
        """The value in a section; None where the group that it belongs to is absent."""
        for name in self.path:
            section = None if section is None else getattr(section, name)
        return section

    def group(self, section: Any) -> Any:
        """The group that the field belongs to, in a section; None where it is absent."""
        for name in self.path[:-1]:
            section = None if section is None else getattr(section, name)
        return section


def settings_of(config_type: type, path: tuple[str, ...] = ()) -> Iterator[Setting]:
    """Every field of a section, in order; the fields of a group stand behind the group itself."""
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
    return (Flag(name=flag, read=whole if int in kinds else _first),)


def whole(values: Values) -> Any:
    """A whole number; text that is none goes on as text, for the field's own message."""
    try:
        return int(values[0])
    except ValueError:
        return values[0]


def real(values: Values) -> Any:
    """A number; text that is none goes on as text, for the field's own message."""
    try:
        return float(values[0])
    except ValueError:
        return values[0]
