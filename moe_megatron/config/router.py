"""The router of a model as data: its name and options.

`moe_megatron.routing` knows which routers exist, which options each takes and their defaults;
`routing.resolve` checks a `RouterConfig` against them. A file gives a router as a name, or as a
mapping of its name and options:

    router: sparse_mixer
    router: {name: top_k, score_function: sigmoid}
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from moe_megatron.config.checks import is_identifier
from moe_megatron.config.conform import convert, show
from moe_megatron.errors import ConfigError

Option = bool | int | str | float | None
"""Value of a router's option."""

_NAME = "name"


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterConfig:
    """A router by name.

    Raises:
        ConfigError: The name is not text, or an option is not a value that a file can hold.
    """

    name: str = "top_k"
    """Name under which the router is registered."""

    options: Mapping[str, Option] = field(default_factory=dict)
    """The options that differ from the router's defaults, or all of them."""

    def __post_init__(self) -> None:
        part = self.read_part({_NAME: self.name, **self.options}, "moe.router")
        object.__setattr__(self, "name", part.pop(_NAME))
        object.__setattr__(self, "options", part)

    def option(self, name: str, default: Option = None) -> Option:
        """The value of an option; `default` if it is not given."""
        return self.options.get(name, default)

    def to_plain(self) -> dict[str, Option]:
        """Name and options in one mapping, as a file holds them."""
        return {_NAME: self.name, **self.options}

    @classmethod
    def conformed(cls, value: object, where: str) -> Self:
        """A router from a name, a mapping or a router.

        Raises:
            ConfigError: It is none of these.
        """
        if isinstance(value, cls):
            return value
        part = cls.read_part(value, where)
        name = part.pop(_NAME, cls().name)
        return cls(name=name, options=part)

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
                f"{where} needs the name of a router, or a mapping of its name and options, not "
                f"{show(value)}."
            )
        found: dict[str, Any] = {}
        for key, item in value.items():
            if not isinstance(key, str) or not is_identifier(key):
                raise ConfigError(
                    f"{where} has an option {show(key)}, which is not a valid name; use letters, "
                    "digits and underscores."
                )
            kind = str if key == _NAME else Option
            found[key] = convert(item, kind, f"{where}.{key}")
        return found
