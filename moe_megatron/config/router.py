"""The router of a model as data: its name and options.

`moe_megatron.routing` knows which routers exist, which options each takes and their defaults;
`routing.resolve` checks a `RouterConfig` against them.
"""

from dataclasses import dataclass
from typing import ClassVar

from moe_megatron.config.named import Named


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterConfig(Named):
    """A router by name.

    Raises:
        ConfigError: The name is not text, or an option is not a value that a file can hold.
    """

    WHAT: ClassVar[str] = "a router"
    FIELD: ClassVar[str] = "moe.router"

    name: str = "top_k"
    """Name under which the router is registered."""
