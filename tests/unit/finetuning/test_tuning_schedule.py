"""How long a fine-tuning takes and what it holds out, by data of each kind."""

import json
from pathlib import Path
from typing import Any

import pytest

from moe_megatron.config import RunConfig, apply_overrides
from moe_megatron.data.instructions.stored import StoredPairs
from moe_megatron.data.source import resolve_blend
from moe_megatron.finetuning import schedule
from moe_megatron.finetuning.schedule import with_schedule
from moe_megatron.run.prepared_data import open_indexed_writer, open_instruction_writer
from moe_megatron.text.demo import demo_tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
NUMBER = 12


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A run on pairs whose two sides are of one length."""
    monkeypatch.setenv("MOE_MEGATRON_CACHE", str(tmp_path / "cache"))
    demo_tokenizer(vocab_size=512).save(tmp_path / "tok")
    (tmp_path / "tok" / "chat_template.jinja").write_text(TEMPLATE)
    rows = [{"prompt": "2+2?", "chosen": "is a", "rejected": "is b"}] * NUMBER
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return apply_overrides(
        RunConfig(),
        {
            "data.paths": [str(tmp_path / "pairs.jsonl")],
            "data.tokenizer": str(tmp_path / "tok"),
            "data.format": "preferences",
            "training.micro_batch_size": 1,
            "training.global_batch_size": 4,
            "training.eval_interval": None,
            "training.warmup_steps": 0,
        },
    )


def prepared(config: RunConfig) -> Path:
    return resolve_blend(
        config.data, open_indexed_writer, open_samples=open_instruction_writer
    ).prefixes[0]


def with_length(config: RunConfig, pairs_of_a_row: int) -> RunConfig:
    """Rows that so many pairs fill, and a place that nothing takes."""
    sides = StoredPairs(prepared(config)).sides
    places = sides.lengths[:2] - 1
    assert places[0] == places[1]
    length = 2 * int(places[0]) * pairs_of_a_row + 1
    return apply_overrides(config, {"data.sequence_length": length})


def unnamed(field: str) -> bool:
    return False


@pytest.mark.parametrize("pairs_of_a_row", [1, 3])
def test_epochs_of_pairs_are_counted_by_rows_of_pairs(given: RunConfig, pairs_of_a_row: int):
    config = with_length(given, pairs_of_a_row)
    found = with_schedule(config, unnamed, print, epochs=2, hold_out=False)
    assert found.training.train_steps == 2 * NUMBER / pairs_of_a_row / 4


def test_of_pairs_that_nobody_names_nothing_is_held_out(given: RunConfig):
    config = with_length(given, 1)
    text = {"data.paths": [str(prepared(config))], "data.format": "text"}
    config = apply_overrides(config, text)
    assert with_schedule(config, unnamed, print) == config


def test_data_is_looked_up_once(given: RunConfig, tmp_path: Path, monkeypatch: Any):
    rows = [{"text": f"text {it} of all"} for it in range(100)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = {"data.paths": [str(tmp_path / "texts.jsonl")], "data.format": "text"}
    text |= {"data.sequence_length": 8}
    looked_up = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        looked_up.append(args)
        return resolve_blend(*args, **kwargs)

    monkeypatch.setattr(schedule, "resolve_blend", counted)
    found = with_schedule(apply_overrides(given, text), unnamed, print, epochs=3)
    assert len(looked_up) == 1
    assert found.training.eval_interval is not None
    assert found.data.split == schedule.SPLIT
    assert with_schedule(given, lambda field: True, print) == given
    assert len(looked_up) == 1, "nothing is looked up that nobody needs"
