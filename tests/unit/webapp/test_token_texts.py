"""Tokens of an expert: shown where somebody says so, by the run's own tokenizer."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_megatron.telemetry.sinks.sample_files import sample_paths, tokens_path
from moe_megatron.testing.written_run import NUM_EXPERTS, NUM_IDS, step_sample, write_run
from moe_megatron.text.training import train_tokenizer
from moe_megatron.webapp.calls import answer
from moe_megatron.webapp.report import render_report
from moe_megatron.webapp.run_reader import RunReader

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run", 20, samples=8, tokens=True)


def asked(run: RunReader, call: str, **words: int) -> Any:
    return answer(run, call, {name: str(value) for name, value in words.items()})


@pytest.mark.parametrize(("last", "step"), [(20, 16), (16, 16), (15, 8)])
def test_shares_are_those_of_the_last_sample(run_dir: Path, last: int, step: int) -> None:
    found = asked(RunReader(run_dir, show_tokens=True), "expert", layer=3, expert=5, last=last)
    assert found["tokens_step"] == step
    top = step_sample(step, tokens=True).tokens[1]
    row = top.ids[5]
    assert [it["id"] for it in found["tokens"]] == row[row >= 0].tolist()
    assert {it["text"] for it in found["tokens"]} == {None}
    assert sum(it["share"] for it in found["tokens"]) == pytest.approx(1.0)
    for place, it in enumerate(found["tokens"]):
        assert it["share"] == pytest.approx(top.counts[5, place] / top.assigned[5])
        assert it["null_share"] == pytest.approx(top.in_layer[5, place] / top.assigned.sum())


def test_shares_of_a_layer_are_what_its_experts_make_together(run_dir: Path) -> None:
    run = RunReader(run_dir, show_tokens=True)
    assigned = step_sample(16, tokens=True).tokens[1].assigned
    whole = np.zeros(NUM_IDS)
    for number in range(NUM_EXPERTS):
        for it in asked(run, "expert", layer=3, expert=number)["tokens"]:
            whole[it["id"]] += it["share"] * assigned[number] / assigned.sum()
    for it in asked(run, "expert", layer=3, expert=0)["tokens"]:
        assert it["null_share"] == pytest.approx(whole[it["id"]])


def test_nothing_of_tokens_leaves_where_nobody_asked_for_them(run_dir: Path) -> None:
    run = RunReader(run_dir)
    found = asked(run, "expert", layer=3, expert=5)
    assert (found["tokens"], found["tokens_step"]) == ([], None)
    about = asked(run, "about")
    assert about["has"]["tokens"]
    assert not about["show_tokens"]


def test_run_that_records_none_has_none(tmp_path: Path) -> None:
    run = RunReader(write_run(tmp_path / "run", 10, samples=5), show_tokens=True)
    assert asked(run, "expert", layer=3, expert=5)["tokens"] == []
    assert not asked(run, "about")["has"]["tokens"]


def _checkpoint(run_dir: Path, step: int) -> Path:
    folder = run_dir / "checkpoints" / f"iter_{step:07d}"
    folder.mkdir(parents=True)
    return folder


def test_texts_are_those_of_the_tokenizer_beside_the_newest_checkpoint(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", 10, samples=5, tokens=True)
    run = RunReader(run_dir, show_tokens=True)
    tokenizer = train_tokenizer(["a b c"] * 9, tmp_path / "words", vocab_size=270)
    tokenizer.save(_checkpoint(run_dir, 5) / "hf")
    (_checkpoint(run_dir, 10) / "hf").mkdir()  # as of a conversion without a tokenizer
    for it in asked(run, "expert", layer=3, expert=5)["tokens"]:
        assert it["text"] == tokenizer.decode([it["id"]])
    other = run_dir / "checkpoints/iter_0000010/hf"
    tokenizer.save(other)
    (other / "tokenizer.json").write_text("{}")
    assert {it["text"] for it in asked(run, "expert", layer=3, expert=5)["tokens"]} == {None}


def test_tokenizer_elsewhere_that_the_configuration_names_is_not_read(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", 10, samples=5, tokens=True)
    train_tokenizer(["a b c"] * 9, tmp_path / "elsewhere", vocab_size=270)
    (run_dir / "config.yaml").write_text(f"data:\n  tokenizer: {tmp_path / 'elsewhere'}\n")
    (_checkpoint(run_dir, 10) / "hf").mkdir()
    (run_dir / "checkpoints/iter_0000010/hf/vocab.json").write_text("{}")
    run = RunReader(run_dir, show_tokens=True)
    assert {it["text"] for it in asked(run, "expert", layer=3, expert=5)["tokens"]} == {None}


def test_report_holds_neither_texts_nor_ids(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", 10, samples=5, tokens=True)
    tokenizer = train_tokenizer([HOSTILE] * 9, tmp_path / "words", vocab_size=300)
    tokenizer.save(_checkpoint(run_dir, 10) / "hf")
    before = render_report(run_dir)
    assert HOSTILE not in before
    for path in sample_paths(run_dir).values():
        tokens_path(path).unlink()
    assert render_report(run_dir) == before.replace('"tokens":true', '"tokens":false').replace(
        '"tokens": true', '"tokens": false'
    )
