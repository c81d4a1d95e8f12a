"""Where the processes of a run keep bytecode."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from moe_megatron.platform import bytecode
from moe_megatron.platform.bytecode import keep_bytecode

VARIABLES = ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A virtual environment in a container that forbids writing, with nothing compiled."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", "")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "pycache_prefix", str(tmp_path / "nothing"))
    return tmp_path


def found() -> tuple[str, ...]:
    return tuple(os.environ.get(name, "") for name in VARIABLES)


def test_processes_write_it_into_the_environment(container: Path) -> None:
    keep_bytecode()
    assert found() == ("", str(container / "bytecode"))
    code = "import importlib.util, json; print(importlib.util.cache_from_source(json.__file__))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    written = Path(done.stdout.strip())
    assert written.is_relative_to(container / "bytecode")
    assert written.exists()


@pytest.mark.parametrize("reason", ["allowed", "elsewhere", "compiled", "no environment"])
def test_nothing_changes_where_it_is_of_no_use(
    reason: str, container: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason == "allowed":
        monkeypatch.delenv("PYTHONDONTWRITEBYTECODE")
    elif reason == "elsewhere":
        monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(container))
    elif reason == "compiled":
        torch = importlib.util.find_spec("torch")
        assert torch is not None
        assert torch.origin is not None
        compiled = Path(importlib.util.cache_from_source(torch.origin))
        compiled.parent.mkdir(parents=True)
        compiled.touch()
        assert bytecode._is_compiled("torch")
    else:
        monkeypatch.setattr(sys, "base_prefix", str(container))
    before = found()
    keep_bytecode()
    assert found() == before
