"""`moe-megatron finetune` on several tasks: held out, judged, and the best checkpoint exported."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.testing.random_checkpoint import write_random
from moe_megatron.testing.tiny_models import config_of

pytestmark = [pytest.mark.distributed, pytest.mark.deep, pytest.mark.timeout(900)]

WORDS = {"code": "def return if else for in", "prose": "the a is it was then", "old": "we did so"}
SHORT = ["--seq-length", "32", "--micro-batch-size", "2", "--lr", "1e-3", "--num-processes", "1"]


@pytest.fixture
def place(tokenizer: Path, tmp_path: Path) -> Path:
    """A published model, and sources of 40 texts."""
    folder = tmp_path / "model"
    write_random(folder, {**config_of("olmoe"), "vocab_size": 300, "torch_dtype": "bfloat16"})
    for path in tokenizer.iterdir():
        shutil.copy(path, folder)
    for name, words in WORDS.items():
        drawn = random.Random(name)
        texts = [" ".join(drawn.choices(words.split(), k=30)) for _ in range(40)]
        lines = [json.dumps({"text": text}) + "\n" for text in texts]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    (tmp_path / "empty.jsonl").touch()
    return tmp_path


def test_tasks_are_mixed_judged_and_the_best_is_exported(
    moe: Callable[..., Any], place: Path
) -> None:
    tasks = ["--task", "code=code.jsonl:0.3", "prose=prose.jsonl:0.7", "--base-data", "old.jsonl"]
    done = moe(place, "finetune", "model", "--output", "tuned", "--epochs", "1", *tasks, *SHORT)
    assert done.end(500) == 0, done.output
    assert "tasks at step 0 -> " in done.output
    run = place / "tuned" / "run"
    found = json.loads((run / "tasks.json").read_text())
    assert [it["name"] for it in found["tasks"]] == ["code", "prose", "base"]
    assert all(it["loss_change"] < 0 for it in found["tasks"][:2])
    best = json.loads((run / "best.json").read_text())
    steps = sorted(int(step) for step in best["compared"])
    assert steps[0] == 0
    assert len(steps) == 5
    saved = {path.name for path in (run / "checkpoints").glob("iter_*")}
    # The last one, and the best of those before it.
    assert {f"iter_{best['step']:07d}", f"iter_{steps[-1]:07d}"} <= saved
    assert len(saved) == 2
    profile = RoutingProfile.load(place / "tuned" / "hf" / "routing_profile.json")
    assert list(profile.by_task) == ["code", "prose"]
    assert profile.by_task["prose"].sum() > profile.by_task["code"].sum()

    # What cannot be trained on leaves nothing behind.
    for bad, said in (
        (["--task", "code=code.jsonl", "code=prose.jsonl"], "two tasks are called code"),
        (["--task", "code=code.jsonl:0"], "the weight of the task 'code' (0) must be above 0"),
        (["--task", "code=empty.jsonl"], "empty.jsonl"),
        (["code.jsonl", "--set", "evaluation.best=los"], "Did you mean 'loss'?"),
        (["code.jsonl", "--epochs", "0"], "--epochs (0) must be above 0"),
        (["code.jsonl", "--epochs", "1", "--train-iters", "3"], "--epochs and --train-iters"),
        (["--task", "a=code.jsonl", "--set", "evaluation.best=loss/b"], "there is no task 'b'"),
    ):
        refused = moe(place, "finetune", "model", "--output", "new", *bad, *SHORT)
        assert refused.end(200) == 2, refused.output
        assert said in refused.output
        assert not (place / "new").exists()


def test_data_that_cannot_be_divided_is_trained_on_whole(
    moe: Callable[..., Any], place: Path
) -> None:
    (place / "book.txt").write_text("it was a dark and stormy night " * 90)
    words = ["finetune", "model", "book.txt", "--output", "tuned", "--train-iters", "2", *SHORT]
    done = moe(place, *words)
    assert done.end(500) == 0, done.output
    assert "nothing is held out: " in done.output
    assert not (place / "tuned" / "run" / "best.json").exists()
