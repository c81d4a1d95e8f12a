"""Pairs of answers: how they may be written, what is stored of them, and how rows hold them."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from moe_megatron.cli.verbs.data import run
from moe_megatron.config import apply_overrides, load_config
from moe_megatron.data.index import inspect
from moe_megatron.data.instructions.encoder import chat_encoder
from moe_megatron.data.instructions.format_registry import reader_named, recognised
from moe_megatron.data.instructions.packed_row import row_of
from moe_megatron.data.instructions.packing import packed_rows
from moe_megatron.data.instructions.stored import StoredPairs, StoredSamples, holds_pairs, opened
from moe_megatron.data.instructions.suitable import check_pairs
from moe_megatron.data.instructions.tokens import ChatEncoder
from moe_megatron.data.instructions.turns import BadSampleError
from moe_megatron.data.prepare import prepare_dataset
from moe_megatron.data.shards import expand_sources
from moe_megatron.errors import ConfigError, DataError
from moe_megatron.run.prepared_data import open_instruction_writer
from moe_megatron.text.tokenizer import Tokenizer

SECRET = "zebra"


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


ASKED, GOOD, BAD = said("user", "2+2?"), said("assistant", "4"), said("assistant", "It is 5")
FORMS: dict[str, dict[str, Any]] = {
    "texts": {"prompt": "2+2?", "chosen": "4", "rejected": "It is 5"},
    "messages": {"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]},
    "whole conversations": {"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
    "whole ones beside a prompt": {
        "prompt": "2+2?",
        "chosen": [ASKED, GOOD],
        "rejected": [ASKED, BAD],
        "score_chosen": 4.0,
    },
    "a text and messages": {"prompt": "2+2?", "chosen": [GOOD], "rejected": [BAD]},
}
BAD_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "no rejected answer": ({"prompt": SECRET, "chosen": "a"}, "'rejected'"),
    "no prompt": ({"chosen": SECRET, "rejected": "b"}, "there is no 'prompt', and 'chosen'"),
    "equal answers": ({"prompt": "a", "chosen": SECRET, "rejected": SECRET}, "are the same"),
    "an empty answer": ({"prompt": SECRET, "chosen": "a", "rejected": ""}, "no answer"),
    "an empty list": ({"prompt": SECRET, "chosen": [], "rejected": "b"}, "'chosen'"),
    "a number": ({"prompt": SECRET, "chosen": 3, "rejected": "b"}, "'chosen'"),
    "a whole conversation that ends early": (
        {"chosen": [ASKED, GOOD], "rejected": [ASKED, GOOD, said("user", SECRET)]},
        "chosen: no answer to learn",
    ),
}


def pairs(number: int) -> list[dict[str, str]]:
    return [
        {
            "prompt": f"{it}+{it}?",
            "chosen": " ".join(["is", str(2 * it)] * (it % 4 + 1)),
            "rejected": " ".join(["was"] * (it % 5 + 1)),
        }
        for it in range(number)
    ]


def encoder(source: Path, tokenizer: Tokenizer) -> ChatEncoder:
    return chat_encoder("preferences", tokenizer, expand_sources([source]))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in pairs(20)))
    return path


@pytest.fixture
def stored(source: Path, plain: Tokenizer, tmp_path: Path) -> StoredPairs:
    reader = encoder(source, plain)
    prepare_dataset([source], reader, tmp_path / "p", open_instruction_writer, progress=False)
    return StoredPairs(tmp_path / "p")


@pytest.mark.parametrize("form", FORMS)
def test_a_pair_in_any_form_is_the_same_two_conversations(form):
    found = reader_named("preferences")(FORMS[form])
    expected = reader_named("preferences")(FORMS["texts"])
    assert [it.message for it in found.chosen.turns] == [ASKED, GOOD]
    assert [it.message for it in found.rejected.turns] == [ASKED, BAD]
    assert found == expected


def test_only_where_answers_differ_is_learned():
    more = [said("user", "Sure?"), GOOD]
    row = {"chosen": [ASKED, GOOD, *more], "rejected": [ASKED, GOOD, more[0], BAD]}
    found = reader_named("preferences")(row)
    for side in (found.chosen, found.rejected):
        assert [it.learned for it in side.turns] == [False, False, False, True]


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_pair_is_refused_without_what_it_says(name):
    row, expected = BAD_ROWS[name]
    with pytest.raises(BadSampleError) as error:
        reader_named("preferences")(row)
    assert expected in str(error.value)
    assert SECRET not in str(error.value)


def test_pairs_are_not_taken_for_conversations():
    with pytest.raises(DataError, match=r"holds pairs .* --task preferences of moe-megatron"):
        recognised([FORMS["texts"]], "my.jsonl")


def test_what_is_stored_is_what_was_encoded(stored, source, plain):
    reader = encoder(source, plain)
    assert len(stored) == 20
    assert inspect(stored.prefix).documents == 20  # so that no split divides a pair
    for number, row in enumerate(pairs(20)):
        sample = reader.encode(row)
        assert sample.is_pair
        for part, side in zip(stored.parts(number, 1000), sample.sides, strict=True):
            assert part[0].tolist() == [it for piece in side for it in piece.ids]
            expected = [piece.learned for piece in side for _ in piece.ids]
            assert part[1].tolist() == expected


@pytest.mark.deep
def test_files_of_all_kinds_and_several_workers_give_the_same(source, stored, plain, tmp_path):
    parquet.write_table(pa.Table.from_pylist(pairs(20)), tmp_path / "pairs.parquet")
    datasets.Dataset.from_list(pairs(20)).save_to_disk(tmp_path / "saved")
    for number, given in enumerate((tmp_path / "pairs.parquet", tmp_path / "saved", source)):
        reader, prefix = encoder(given, plain), tmp_path / f"again{number}"
        workers = 2 if given == source else 1
        prepare_dataset(
            [given], reader, prefix, open_instruction_writer, progress=False, num_workers=workers
        )
        assert StoredPairs(prefix).sides.tokens.tolist() == stored.sides.tokens.tolist()
        assert (StoredPairs(prefix).places(64) == stored.places(64)).all()


def test_a_row_holds_whole_pairs_and_each_side_at_most_half(stored):
    length, seen = 64, []
    packed = packed_rows(stored, length)
    for numbers in packed.rows:
        row = row_of(stored, numbers, length, 7, first_pair=100)
        assert (row["padding"] == (row["pairs"] == 0)).all()
        assert (np.unique(np.abs(row["pairs"])) > 0).sum() == len(numbers)
        for number in numbers:
            seen.append(number)
            for mark, (ids, learned) in zip(
                (number + 101, -number - 101), stored.parts(number, length), strict=True
            ):
                here = row["pairs"] == mark
                assert len(ids) - 1 == here.sum() <= length // 2
                assert row["tokens"][here].tolist() == ids[:-1].tolist()
                assert row["labels"][here].tolist() == ids[1:].tolist()
                assert row["loss_mask"][here].tolist() == learned[1:].tolist()
                assert row["position_ids"][here].tolist() == list(range(len(ids) - 1))
    lengths = stored.sides.lengths.reshape(-1, 2) - 1
    assert packed.cut == sum(lengths[it].max() > length // 2 for it in seen)
    assert packed.cut > 0
    assert packed.left_out == 20 - len(seen)
    assert "pairs have an answer that is longer than half a row" in packed.lines[0]
    with pytest.raises(DataError, match=r"none of 20 pairs of .* has both answers within a row"):
        packed_rows(stored, 4)


def test_pairs_and_conversations_are_told_apart(stored, plain, tmp_path):
    chat = tmp_path / "chat.jsonl"
    chat.write_text(json.dumps({"prompt": "Hi", "completion": "Hello"}))
    reader = chat_encoder("completion", plain, expand_sources([chat]))
    prepare_dataset([chat], reader, tmp_path / "c", open_instruction_writer, progress=False)
    assert isinstance(opened(stored.prefix), StoredPairs)
    assert isinstance(opened(tmp_path / "c"), StoredSamples)
    with pytest.raises(DataError, match="which only a training on preferences reads"):
        StoredSamples(stored.prefix)
    with pytest.raises(DataError, match="does not hold pairs of a chosen and a rejected answer"):
        StoredPairs(tmp_path / "c")
    with pytest.raises(DataError, match=r"holds pairs of answers and .* conversations"):
        holds_pairs([tmp_path / "c", stored.prefix])


def test_preview_marks_both_answers_and_counts(source, stored, plain, capsys, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    words = ["--tokenizer", str(plain.directory), "--samples", "1", "--sequence-length", "64"]
    assert run(["preview", str(source), "--format", "preferences", *words]) == 0
    shown = capsys.readouterr().out
    assert run(["preview", str(stored.prefix), *words]) == 0
    assert shown == f"format: preferences\n{capsys.readouterr().out}"
    assert "learned: {+like this+}, rejected: [-like this-]\n--- pair 1: " in shown
    answers = "{+is 0<|endoftext|>+}\n\n<|user|>\n0+0?<|endoftext|>\n<|assistant|>\n[-was<|endof"
    assert answers in shown
    assert "20 pairs, " in shown
    assert "longer than half a row of 64: " in shown
    assert run(["inspect", str(stored.prefix)]) == 0
    assert ": 20 pairs, " in capsys.readouterr().out


@pytest.mark.parametrize(
    "given", [{"data.paths": ["a"], "data.tasks": ["t"]}, {"evaluation.base": ["b"]}]
)
def test_tasks_of_pairs_are_refused(given):
    with pytest.raises(ConfigError, match=r"are measured by training\.eval_interval alone"):
        check_pairs(
            apply_overrides(load_config("test_tiny"), {**given, "training.eval_interval": 1})
        )
