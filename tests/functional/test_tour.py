"""The tour on a real model, in its shorter form: what it promises of perplexities and experts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.functional.conftest import run_on_real_model

pytestmark = [pytest.mark.deep, pytest.mark.distributed, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def toured(start: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_on_real_model(start, "tour.py", tmp_path_factory.mktemp("tour"), "--no-open")


@pytest.fixture(scope="module")
def record(toured: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((toured / "tour.json").read_text())
    return found


def test_experts_that_are_copies_predict_as_the_dense_model(record: dict[str, Any]) -> None:
    dense, upcycled = record["perplexity"]["dense"], record["perplexity"]["upcycled"]
    assert upcycled == pytest.approx(dense, rel=0.02), "as far as the noise lets them"


def test_new_languages_are_learned_and_the_old_one_is_kept(record: dict[str, Any]) -> None:
    before, after = record["perplexity"]["upcycled"], record["perplexity"]["trained"]
    assert {it for it in ("de", "fr", "ja") if after[it] < 0.95 * before[it]} == {"de", "fr", "ja"}
    assert after["en"] < 1.05 * before["en"]


def test_experts_tell_languages_apart_and_answers_change(record: dict[str, Any]) -> None:
    found = zip(record["information"], record["chance"], strict=True)
    assert max(known / by_chance for known, by_chance in found) > 2
    assert record["answers"]["before"] != record["answers"]["after"]


def test_picture_and_report_are_there(toured: Path) -> None:
    assert (toured / "languages.png").read_bytes().startswith(b"\x89PNG")
    assert "<html" in (toured / "run" / "report.html").read_text()
