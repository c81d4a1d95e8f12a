"""The range of a number, declared beside its type: `width: Annotated[int, Within(least=1)] = 16`.

Every configuration class is held to such ranges by `conform`, and so are the options of routers and
experts, also of those that somebody else has written. It knows no field by name.
"""

from dataclasses import dataclass
from typing import Any, get_args

from moe_megatron.config.checks import join_words


@dataclass(frozen=True, kw_only=True, slots=True)
class Within:
    """Which numbers a field takes. None of these: every finite number."""

    least: float | None = None
    """The smallest one."""
    above: float | None = None
    """All are greater than this."""
    most: float | None = None
    """The largest one."""
    below: float | None = None
    """All are less than this."""

    def holds(self, value: float) -> bool:
        """Whether a number is in the range."""
        return (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """The range in words: "at least 0 and less than 1"."""
        limits = {
            "at least": self.least,
            "greater than": self.above,
            "at most": self.most,
            "less than": self.below,
        }
        return join_words(
            [f"{it} {limit:.12g}" for it, limit in limits.items() if limit is not None], "and"
        )


def range_of(annotation: Any) -> Within | None:
    """The range that an annotation declares, also one of `Annotated[int, Within(...)] | None`."""
    found = [it for it in getattr(annotation, "__metadata__", ()) if isinstance(it, Within)]
    found += [it for part in get_args(annotation) if (it := range_of(part)) is not None]
    return found[0] if found else None
