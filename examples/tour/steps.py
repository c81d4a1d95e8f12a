"""What both programs do alike: tell of each step, and end with one line where something fails."""

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from moe_megatron.errors import MoEError

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


def carry_out(program: Callable[[], None], folder: Path) -> int:
    """Make the folder anew, and do what there is to do; returns the exit code."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        program()
    except MoEError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
