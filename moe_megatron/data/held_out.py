"""What a run evaluates by itself: the held-out data of a task, or the base domain, as a value."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """Data that a run evaluates by itself."""

    name: str
    """Of the task, or of the base domain."""
    prefixes: tuple[str, ...]
    """Indexed datasets."""
    number: int = -1
    """Of the task; -1: it is none that routers know."""
    whole: bool = False
    """Whether all of it is held out, and not the validation share alone."""
