"""README, followed literally by `tools/follow_readme.py`: a clean clone, a new home folder."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tools" / "follow_readme.py"

PAGE = """\
Text with `make report`, `RUN/x` and `make train`.

    make train
    torchrun --one \\
        --two

```text
    make nothing
```

```python
first = 1
```

Again `make report`.

```python
print(first)
```
"""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("follow_readme", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look it up
    spec.loader.exec_module(module)
    return module


def test_every_command_is_found_once_and_examples_keep_their_lines(script: ModuleType) -> None:
    steps = list(script.steps_of(PAGE))
    assert [(step.line, step.text) for step in steps] == [
        (1, "make report"),
        (3, "make train"),
        (4, "torchrun --one --two"),
        (12, "first = 1"),
        (18, "print(first)"),
    ]
    program = script.merged(steps)[-1]
    assert program.text.splitlines()[11] == "first = 1"
    assert program.text.splitlines()[17] == "print(first)"


def test_what_is_shortened_or_left_out_is_in_readme(script: ModuleType) -> None:
    steps = list(script.steps_of((ROOT / "README.md").read_text()))
    assert script.stale(steps) == []
    assert script.stale(steps[1:]) == ["make train"]
    assert not script.SHORTER.keys() & script.LEFT_OUT.keys()


def test_make_reports_on_the_newest_run_whatever_else_is_in_the_folder(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for age, name in enumerate(["bench", "newest", "older"]):
        (runs / name).mkdir(parents=True)
        if name != "bench":
            metrics = runs / name / "metrics.jsonl"
            metrics.touch()
            os.utime(metrics, (1e9 - age, 1e9 - age))
    shown = subprocess.run(
        ["make", "--dry-run", f"--makefile={ROOT / 'Makefile'}", "report"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "moe-megatron report runs/newest" in shown


@pytest.mark.deep
@pytest.mark.distributed
@pytest.mark.timeout(1800)
def test_readme_works_as_it_is_written(tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, SCRIPT, tmp_path], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stdout[-6000:] + answer.stderr[-2000:]
