"""Data that is away when a run starts, for the first time or again."""

import json
import logging
import threading
from pathlib import Path

import pytest

from moe_megatron.config import RunConfig, apply_overrides, load_config
from moe_megatron.errors import DataError, FaultError
from moe_megatron.run.folder import write_config
from moe_megatron.run.missing_data import data_of_run
from moe_megatron.telemetry.journal import note
from moe_megatron.text.training import train_tokenizer

TEXTS = [f"Document {i}: the quick brown fox, x = {i * i}." for i in range(40)]


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    tokenizer = train_tokenizer(TEXTS, tmp_path / "tokenizer", vocab_size=300).directory
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    return apply_overrides(
        load_config("test_tiny"),
        {
            "data.paths": (str(tmp_path / "a.jsonl"),),
            "data.tokenizer": str(tokenizer),
            "data.cache_dir": str(tmp_path / "cache"),
            "run_dir": str(tmp_path / "run"),
        },
    )


def use(config: RunConfig) -> None:
    """Leave a run folder as one that has trained on its data."""
    write_config(config, Path(config.run_dir))
    note(Path(config.run_dir), "first_step", step=1, seconds=1.0)


def test_first_start_refuses_at_once_by_name(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(DataError, match=r"data file .*a\.jsonl does not exist"):
        data_of_run(config, progress=False, patience=1e9)


def test_run_with_other_data_refuses_at_once_by_name(config: RunConfig, tmp_path: Path) -> None:
    use(config)
    other = apply_overrides(config, {"data.paths": (str(tmp_path / "b.jsonl"),)})
    with pytest.raises(DataError, match=r"data file .*b\.jsonl does not exist"):
        data_of_run(other, progress=False, patience=1e9)


def test_run_that_has_used_its_data_waits_for_it(
    config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = data_of_run(config, progress=False)
    use(config)
    data, away = tmp_path / "a.jsonl", tmp_path / "away"
    data.rename(away)
    threading.Timer(0.5, away.rename, [data]).start()
    with caplog.at_level(logging.WARNING):
        assert data_of_run(config, progress=False, patience=60) == before
    assert "The run has used it, and waits 60 s for it." in caplog.text


def test_data_that_stays_away_is_a_fault_that_is_tried_again(
    config: RunConfig, tmp_path: Path
) -> None:
    use(config)
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(FaultError, match=r"did not come back within 0\.2 s: data file .*a\.jsonl"):
        data_of_run(config, progress=False, patience=0.2)
