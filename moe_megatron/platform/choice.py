"""A value that was chosen automatically, with the reason for it.

Code that uses the value logs the reason, so that nobody has to guess why a run took this device or
that precision. This module knows nothing about what is chosen.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice[T]:
    """One automatic decision."""

    value: T
    """The chosen value."""
    reason: str
    """Why it was chosen, as a clause, such as "no CUDA device was found"."""

    def __str__(self) -> str:
        return f"{self.value} ({self.reason})"
