"""The dashboard's page, built from a copy of its sources."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FRONTEND = ROOT / "moe_megatron" / "webapp" / "frontend"


def done(*words: object, cwd: Path = ROOT) -> str:
    """What a program writes; it must succeed."""
    answer = subprocess.run(
        list(map(str, words)), cwd=cwd, capture_output=True, text=True, timeout=240
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def build_page(folder: Path) -> Path:
    """A copy of the sources with their packages; its page is built beside it, in `page`."""
    if shutil.which("npm") is None:
        pytest.skip("needs npm: apt-get install -y nodejs npm")
    copy = folder / "frontend"
    shutil.copytree(FRONTEND, copy, ignore=shutil.ignore_patterns("node_modules"))
    done(ROOT / "tools" / "build_page.sh", copy)
    return copy
