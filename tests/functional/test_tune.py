"""A real model learns a task by `make tune`, in its shorter form: what it promises of answers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.functional.conftest import run_on_real_model

pytestmark = [pytest.mark.deep, pytest.mark.distributed, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def tuned(start: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_on_real_model(start, "tune.py", tmp_path_factory.mktemp("tune"))


def test_held_out_answers_are_learned_and_experts_moved(tuned: Path) -> None:
    record = json.loads((tuned / "tune.json").read_text())
    assert record["loss"]["after"] < record["loss"]["before"] - 0.3
    assert record["answers"]["after"] != record["answers"]["before"]
    moved, before, after = (np.array(it) for it in (record["moved"], *record["shares"].values()))
    assert moved.shape == before.shape == after.shape == (30, 4)
    assert (moved > 0).all(), "each expert has had tokens, and so a gradient"
    assert moved.max() < 0.1, "adapters change little of a model"
    assert np.abs(after - before).max() > 0
    np.testing.assert_allclose(after.sum(axis=1), 1)


def test_adapter_model_picture_and_report_are_there(tuned: Path) -> None:
    assert (tuned / "adapter" / "adapter_model.safetensors").is_file()
    assert (tuned / "tuned" / "chat_template.jinja").is_file()
    assert (tuned / "experts.png").read_bytes().startswith(b"\x89PNG")
    assert "<html" in (tuned / "report.html").read_text()
