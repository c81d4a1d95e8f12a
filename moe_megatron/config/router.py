"""Which router a model has: its name and options, as data.

What routers there are, which options each takes and what they default to is known to
`moe_megatron.routing`, where a router is one file; `routing.resolve` checks this against it. In a
file a router is a name, or a name with options beside it:

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
        ConfigError: The name or an option is no text or value that a file can hold.
    """

    name: str = "top_k"
    """Name under which the router is registered."""

    options: Mapping[str, Option] = field(default_factory=dict)
    """What differs from the router's defaults, or all of its options."""

    def __post_init__(self) -> None:
        part = self.read_part({_NAME: self.name, **self.options}, "moe.router")
        object.__setattr__(self, "name", part.pop(_NAME))
        object.__setattr__(self, "options", part)

    def option(self, name: str, default: Option = None) -> Option:
        """The value of an option; the default where the router is not said to have it."""
        return self.options.get(name, default)

    def to_plain(self) -> dict[str, Option]:
        """As a file holds it."""
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
        """A name and options, some of which may be missing, with their types checked.

        Raises:
            ConfigError: It is no name and no mapping, or holds what no option can be.
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
                raise ConfigError(f"{where} has an option {show(key)}, which is no name.")
            kind = str if key == _NAME else Option
            found[key] = convert(item, kind, f"{where}.{key}")
        return found
