"""What is installed from a wheel trains and converts, away from any checkout."""

import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.deep, pytest.mark.distributed]

ROOT = Path(__file__).parents[2]
BUILD = "from setuptools.build_meta import build_wheel; print(build_wheel('.'))"


def answer(words: list[object], cwd: Path) -> str:
    """What a program writes; it must succeed."""
    done = subprocess.run(
        list(map(str, words)),
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "HOME": str(cwd), "CUDA_VISIBLE_DEVICES": ""},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new environment: the wheel, and the packages that it names."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(
        ROOT / "moe_megatron",
        source / "moe_megatron",
        ignore=shutil.ignore_patterns("__pycache__", "node_modules"),
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    wheel = source / answer([sys.executable, "-c", BUILD], source).splitlines()[-1]
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    programs = folder / "env" / "bin"
    uv = answer([ROOT / "tools" / "setup.sh", "uv"], ROOT).strip()
    there = ["--offline", "--no-deps", "--python", programs / "python"]
    subprocess.run([uv, "pip", "install", "--quiet", *there, wheel], check=True, cwd=ROOT)
    # A path that is read from a .pth file is not searched for others: the checkout stays unknown.
    (library,) = (folder / "env" / "lib").glob("python3*/site-packages")
    (library / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    shutil.rmtree(source)
    return programs


@pytest.fixture
def run(installed: Path, tmp_path: Path) -> Callable[..., str]:
    """Runs a program of the environment in an empty folder."""
    return lambda name, *words: answer([installed / name, *words], tmp_path)


def test_it_is_the_wheel_that_runs(run: Callable[..., str], installed: Path) -> None:
    where = run("python", "-c", "import moe_megatron; print(moe_megatron.__file__)").strip()
    assert Path(where).is_relative_to(installed.parent)


def test_it_trains_and_converts(run: Callable[..., str], tmp_path: Path) -> None:
    words = ("--mock-data", "--train-iters", 3, "--save-interval", 3, "--run-dir", "run")
    said = run("moe-megatron", "train", "--config", "test_tiny", "--num-processes", 1, *words)
    assert "-m moe_megatron.pretrain" in said, "a wheel has no pretrain_moe.py"
    assert "step 3/3" in said
    run("moe-megatron", "convert", "run/checkpoints", "exported")
    assert list((tmp_path / "exported").glob("*.safetensors"))


@pytest.mark.parametrize(
    "words",
    [
        ("python", "-m", "moe_megatron.pretrain"),
        ("moe-megatron-pretrain",),
        ("python", "-m", "moe_megatron", "train"),
    ],
    ids=" ".join,
)
def test_every_way_in_is_there(run: Callable[..., str], words: tuple[str, ...]) -> None:
    assert "num_layers:" in run(*words, "--config", "test_tiny", "--print-config")
