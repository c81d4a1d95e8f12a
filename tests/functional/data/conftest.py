import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moe_megatron.testing.programs import interruptible

ROOT = Path(__file__).parents[3]
WRITERS = ROOT / "tests" / "unit" / "data"


@pytest.fixture(scope="session")
def plain_writer():
    """The twin of Megatron's builder, importable by name here and in every other process."""
    sys.path.insert(0, str(WRITERS))
    yield importlib.import_module("plain_writer")
    sys.path.remove(str(WRITERS))


@pytest.fixture(scope="module")
def start():
    """Starts Python code in a process of its own; whatever still runs at the end is killed."""
    processes = []

    def run(code, *arguments, **environment):
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{WRITERS}"} | environment,
            preexec_fn=interruptible,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def wait_until():
    def wait(condition, seconds=60):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.01)

    return wait
