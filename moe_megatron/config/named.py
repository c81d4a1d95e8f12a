"""Something chosen by name, with options: a router, a kind of expert.

Which names there are, which options each takes and their defaults is known to the packages that
register them; they check a choice when a model is built. A file gives a name, or a mapping of the
name and options:

    router: sparse_mixer
    router: {name: top_k, score_function: sigmoid}

A name may be that of a file of the user's (`own_code`); a saved choice then notes the file's hash.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from moe_megatron.config.checks import is_identifier
from moe_megatron.config.conform import convert, show
from moe_megatron.config.own_code import OwnCode, check_unchanged
from moe_megatron.errors import ConfigError

Option = bool | int | str | float | None
"""Value of an option."""

_NAME = "name"
NOTES = ("sha256", "replaces")
"""What a choice notes beside its name and options."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Named:
    """A name and options; a subclass says of what.

    Raises:
        ConfigError: The name is not text, or an option is not a value that a file can hold.
    """

    WHAT: ClassVar[str]
    """What is named, in a message: "a router"."""
    FIELD: ClassVar[str]
    """The field that holds it: "moe.router"."""

    name: str
    """The name under which it is registered."""

    options: Mapping[str, Option] = field(default_factory=dict)
    """The options that differ from its defaults, or all of them."""

    sha256: str | None = None
    """Of the file with the user's own code, once that was loaded; None for what is registered."""

    replaces: str | None = None
    """The sha256 of earlier code that the file replaces, as the user has said."""

    def __post_init__(self) -> None:
        part = self.read_part({_NAME: self.name, **self.options}, self.FIELD)
        object.__setattr__(self, "name", part.pop(_NAME))
        object.__setattr__(self, "options", part)

    def option(self, name: str, default: Option = None) -> Option:
        """The value of an option; `default` if it is not given."""
        return self.options.get(name, default)

    def to_plain(self) -> dict[str, Option]:
        """Name and options in one mapping, as a file holds them."""
        notes = {note: getattr(self, note) for note in NOTES if getattr(self, note) is not None}
        return {_NAME: self.name, **self.options, **notes}

    def described(self, defaults: Mapping[str, Option]) -> str:
        """The name, the options that are not their defaults, and the start of the file's hash.

        Args:
            defaults: What options are where nobody says otherwise.
        """
        other = [f"{it} {value}" for it, value in self.options.items() if it not in defaults]
        other += [
            f"{it} {self.options[it]}"
            for it in defaults
            if it in self.options and self.options[it] != defaults[it]
        ]
        other += [] if self.sha256 is None else [f"sha256 {self.sha256[:12]}"]
        return f"{self.name} ({', '.join(other)})" if other else self.name

    def is_code_of(self, other: Self) -> bool:
        """Whether code of the user's is that of an earlier choice, or was said to replace it."""
        return self.sha256 == other.sha256 or self.replaces == other.sha256

    def given_again(self, found: Self, code: OwnCode | None) -> Self:
        """This choice, which a run or a model notes, with what a person has given for it.

        Args:
            found: What was given, loaded.
            code: Its code; None for what is registered.

        Returns:
            This choice with its options, and the hash of the file that was given.

        Raises:
            ConfigError: It is another one, or its file has changed and is not said to replace it.
        """
        if found.name != self.name:
            raise ConfigError(
                f"the {self.FIELD.rpartition('.')[2]} '{found.name}' was given, but '{self.name}' "
                "is what was trained; give that one."
            )
        if code is None:
            return self
        replaces = found.replaces or self.replaces
        check_unchanged(code, self.sha256, replaces, self.FIELD)
        return replace(self, sha256=code.sha256, replaces=replaces)

    @classmethod
    def conformed(cls, value: object, where: str) -> Self:
        """A choice from a name, a mapping or a choice.

        Raises:
            ConfigError: It is none of these.
        """
        if isinstance(value, cls):
            return value
        part = cls.read_part(value, where)
        given = {key: part.pop(key) for key in (_NAME, *NOTES) if key in part}
        return cls(**given, options=part)  # subclasses have a default name

    @classmethod
    def read_part(cls, value: object, where: str) -> dict[str, Any]:
        """Read a name and options, any of which may be missing, and check their types.

        Raises:
            ConfigError: It is neither a name nor a mapping, or an option has no valid type.
        """
        if isinstance(value, cls):
            return value.to_plain()
        if isinstance(value, str):
            value = {_NAME: value}
        if not isinstance(value, Mapping):
            raise ConfigError(
                f"{where} needs the name of {cls.WHAT}, or a mapping of its name and options, not "
                f"{show(value)}."
            )
        found: dict[str, Any] = {}
        for key, item in value.items():
            if not isinstance(key, str) or not is_identifier(key):
                raise ConfigError(
                    f"{where} has an option {show(key)}, which is not a valid name; use letters, "
                    "digits and underscores."
                )
            kind: Any = str if key == _NAME else Option
            kind = str | None if key in NOTES else kind
            found[key] = convert(item, kind, f"{where}.{key}")
        return found
