"""What both programs tell of their steps: the time so far, a number, a title and why."""

import time

_started = time.monotonic()
_number = 0


def minutes() -> float:
    """Since the program began."""
    return (time.monotonic() - _started) / 60


def say(title: str, text: str) -> None:
    """Announce a step."""
    global _number
    _number += 1
    print(f"\n[{minutes():.1f} min] {_number}. {title}\n{text}\n", flush=True)
