import time
from collections.abc import Callable

import psutil
import pytest


@pytest.fixture
def wait_until_gone() -> Callable[..., None]:
    """Waits until processes have ended, of which somebody else takes the exit code."""

    def wait(*processes: int, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while any(map(_runs, processes)):
            assert time.monotonic() < deadline, "it still runs"
            time.sleep(0.01)

    return wait


def _runs(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
