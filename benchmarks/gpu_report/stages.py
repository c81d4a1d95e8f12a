"""What the report runs, as data: a `Stage` each, the most valuable first.

A stage is a command with a limit of time and a reader of what it leaves behind. To add one, write
it into `PROFILES`; nothing else has to know it. Of the commands only their words are known here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Required, TypedDict, Unpack

from benchmarks.gpu_report.results import RUN, TESTS, Case, read_cases, read_run, read_tests

ROOT = Path(__file__).resolve().parents[2]
PYTHON, FOLDER = "{python}", "{folder}"
"""In a command: this interpreter, and the folder of the stage."""

Need = Literal["gpu", "engine"]
"""A CUDA device; one with Transformer Engine."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One question and the command that answers it."""

    name: str
    question: str
    command: tuple[str, ...]
    """Words of the command, `PYTHON` and `FOLDER` among them; it runs in the repository."""
    limit: float
    """Seconds until it is killed, with all that it started."""
    read: Callable[[Path], list[Case]] = read_cases
    """Gives the cases that it has left in its folder."""
    needs: Need | None = None


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What a report consists of."""

    name: str
    stages: tuple[Stage, ...]
    budget: float
    """Seconds for all stages."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of all stages, beside those of this process."""


def _gpu_tests() -> tuple[str, ...]:
    """Test files that mention the mark: pytest would import all of them to find these."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    marked = [file for file in files if "mark.gpu" in file.read_text(encoding="utf-8")]
    return tuple(str(file.relative_to(ROOT)) for file in marked)


class _Bounds(TypedDict, total=False):
    """What profiles decide about a stage besides its command."""

    limit: Required[float]
    needs: Need | None


def _pytest(*words: str, **bounds: Unpack[_Bounds]) -> Stage:
    return Stage(
        name="tests",
        question="Do the tests that need a GPU pass?",
        command=(PYTHON, "-m", "pytest", f"--junitxml={FOLDER}/{TESTS}", *words),
        read=read_tests,
        **bounds,
    )


def _main_job(precision: str, *words: str, **bounds: Unpack[_Bounds]) -> Stage:
    train = (PYTHON, "-m", "moe_megatron", "train", "--debug", "--num-processes", "1")
    changes = ("--run-dir", f"{FOLDER}/{RUN}", "--set", f"training.precision={precision}")
    return Stage(
        name=f"main job, {precision}",
        question=f"Does `moe-megatron train` train in {precision}?",
        command=(*train, *changes, *words),
        read=read_run,
        **bounds,
    )


def _program(module: str, profile: str, *words: str) -> tuple[str, ...]:
    program = (PYTHON, "-m", f"benchmarks.gpu_report.{module}")
    return (*program, "--profile", profile, "--folder", FOLDER, *words)


def _shapes(profile: str, precision: str, **bounds: Unpack[_Bounds]) -> Stage:
    return Stage(
        name=f"shapes, {precision}",
        question="How long is a step, how much of the device's peak is that, and which memory?",
        command=_program("step_times", profile, "--precision", precision),
        **bounds,
    )


def _telemetry(profile: str, *words: str, **bounds: Unpack[_Bounds]) -> Stage:
    return Stage(
        name="telemetry",
        question="Does telemetry cost less than 1 % of a step?",
        command=_program("telemetry_cost", profile, *words),
        **bounds,
    )


def _conversion(profile: str, **bounds: Unpack[_Bounds]) -> Stage:
    return Stage(
        name="conversion",
        question="Does a converted checkpoint train on?",
        command=_program("converted", profile),
        **bounds,
    )


_TENSORWISE = ("--fp8-recipe", "tensorwise")
_SMALL = ("--config", "test_tiny", "--mock-data")
_NO_CACHE = ("-p", "no:cacheprovider", "-q")

PROFILES: Mapping[str, Profile] = {
    "gpu": Profile(
        name="gpu",
        budget=540,
        # Their limits add up to less than the budget: each gets its turn, however long others take.
        # Runs of one process that need most of the memory leave each other no whole blocks of it.
        environment={"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"},
        stages=(
            _main_job("bf16", "--config", "demo_moe", limit=85, needs="gpu"),
            _shapes("gpu", "bf16", limit=95, needs="gpu"),
            _shapes("gpu", "fp8", limit=85, needs="engine"),
            _main_job("fp8", "--config", "demo_moe", *_TENSORWISE, limit=50, needs="engine"),
            _pytest("-m", "gpu", *_NO_CACHE, *_gpu_tests(), limit=80, needs="gpu"),
            _telemetry("gpu", "--seconds", "55", limit=80, needs="gpu"),
            _conversion("gpu", limit=45, needs="gpu"),
        ),
    ),
    "tiny": Profile(
        name="tiny",
        budget=900,
        environment={
            "MOE_MEGATRON_DEVICE": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
        },
        stages=(
            _main_job("fp32", *_SMALL, limit=300),
            _shapes("tiny", "fp32", limit=300),
            _shapes("tiny", "fp8", limit=300, needs="engine"),
            _main_job("fp8", *_SMALL, *_TENSORWISE, limit=300, needs="engine"),
            _pytest(*_NO_CACHE, "tests/unit/platform/test_peak.py", limit=300),
            _telemetry("tiny", "--seconds", "250", "--pairs", "10", limit=300),
            _conversion("tiny", limit=300),
        ),
    ),
}
"""By name. "tiny" is the same on a CPU, with limits for a busy machine: tests run it."""
