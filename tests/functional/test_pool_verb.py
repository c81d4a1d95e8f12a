"""`moe-megatron pool`: one command trains, changes the experts, and goes on after a stop."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moe_megatron.testing.jobs import step_records

pytestmark = [pytest.mark.distributed, pytest.mark.deep, pytest.mark.timeout(900)]


def losses(run_dir: Path) -> dict[int, float]:
    return {it.step: float(it.loss or 0) for it in step_records(run_dir)}


def test_one_command_trains_across_changes(
    moe: Callable[..., Any], corpus: Path, tokenizer: Path, tmp_path: Path
) -> None:
    (tmp_path / "tiny.yaml").write_text(
        "base: test_tiny\n"
        f"data: {{paths: ['{corpus}'], tokenizer: '{tokenizer}', split: '100,0,0'}}\n"
        "training: {train_steps: 6, warmup_steps: 0}\n"
    )
    words = ["pool", "--config", "tiny.yaml", "--run-dir", "runs/pool", "--num-processes", "1"]
    changes = ["--change", "2:grow=8", "--change", "4:keep=6"]
    root = tmp_path / "runs" / "pool"
    done = moe(tmp_path, *words, *changes)
    assert done.end(500) == 0, done.output
    assert "step 2: 8 experts: each token visits all 2 copies of its experts" in done.output
    stages = ["1-4-experts", "2-8-experts", "3-6-experts"]
    found = [losses(root / stage) for stage in stages]
    assert [sorted(it) for it in found] == [[1, 2], [3, 4], [5, 6]]
    first, second, third = found
    assert second[3] < first[1]  # what was learned is still there
    assert third[6] < second[3]
    assert (root / "loss.png").is_file()

    # Made again, it does what is missing: here, the last stage.
    (root / stages[2] / "checkpoints" / "latest_checkpointed_iteration.txt").unlink()
    again = moe(tmp_path, *words, *changes)
    assert again.end(500) == 0, again.output
    assert "stage 2-8-experts: already at step 4" in again.output
    assert losses(root / stages[2]) == third
