"""Lists of names in messages: of thousands, the first few."""

from collections.abc import Sequence


def some(names: Sequence[str], most: int = 5) -> str:
    """Names with commas between them, and how many more there are than `most`."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
