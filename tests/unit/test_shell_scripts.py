"""Shell scripts are clean to shellcheck, with what .shellcheckrc says."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = [
    *(ROOT / "examples" / "slurm").glob("*.sh"),
    *(ROOT / "examples" / "slurm").glob("*.sbatch"),
    *(ROOT / "moe_megatron").rglob("*.sh"),
    *(ROOT / "tools").glob("*.sh"),
    ROOT / ".ci" / "run",
]


def test_scripts_are_clean():
    if shutil.which("shellcheck") is None:
        pytest.skip("apt-get install -y --no-install-recommends shellcheck")
    answer = subprocess.run(["shellcheck", *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert answer.stdout + answer.stderr == ""


def test_scripts_that_people_start_may_be_executed():
    folder = ROOT / "examples" / "slurm"
    started = [*folder.glob("*.sbatch"), folder / "chain.sh"]
    assert [path.name for path in started if not path.stat().st_mode & 0o100] == []
