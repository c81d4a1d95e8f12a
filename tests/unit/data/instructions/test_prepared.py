"""From a file of conversations to prepared samples: bad rows, formats of files, what is stored."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_megatron.data.index import bin_path, inspect
from moe_megatron.data.instructions.encoder import chat_encoder
from moe_megatron.data.instructions.samples import held
from moe_megatron.data.instructions.stored import StoredSamples, holds_instructions
from moe_megatron.data.instructions.tokens import ChatEncoder
from moe_megatron.data.prepare import prepare_dataset
from moe_megatron.data.shards import InMemory, expand_sources
from moe_megatron.errors import DataError
from moe_megatron.run.prepared_data import open_indexed_writer, open_instruction_writer
from moe_megatron.text.tokenizer import Tokenizer

SECRET = "zebra"


def talk(number: int) -> dict[str, Any]:
    asked, answered = f"What is {number} + {number}?", f"It is {2 * number}." * (number % 4 + 1)
    return {"messages": [{"role": "user", "content": asked},
                         {"role": "assistant", "content": answered}]}  # fmt: skip


TALKS = [talk(number) for number in range(40)]


def encoder(source: Any, tokenizer: Tokenizer, name: str = "instructions") -> ChatEncoder:
    return chat_encoder(name, tokenizer, expand_sources([source]))


def prepared(source: Any, tokenizer: Tokenizer, prefix: Path, **options: Any) -> StoredSamples:
    reader = encoder(source, tokenizer)
    prepare_dataset([source], reader, prefix, open_instruction_writer, progress=False, **options)
    return StoredSamples(prefix)


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    def write(rows: list[Any]) -> Path:
        path = tmp_path / "chat.jsonl"
        path.write_text(
            "".join(it if isinstance(it, str) else json.dumps(it) + "\n" for it in rows)
        )
        return path

    return write


def test_what_is_stored_is_what_was_encoded(jsonl, plain, tmp_path):
    path = jsonl(TALKS)
    stored, reader = prepared(path, plain, tmp_path / "chat"), encoder(path, plain)
    assert len(stored) == len(TALKS)
    for number, row in enumerate(TALKS):
        sample = reader.encode(row)
        ids, learned = stored.sample(number, 10_000)
        assert ids.tolist() == [token for piece in sample.pieces for token in piece.ids]
        assert learned.tolist() == [piece.learned for piece in sample.pieces for _ in piece.ids]
        assert stored.lengths[number] == sample.tokens
    info = inspect(tmp_path / "chat")
    assert info.documents == len(TALKS)
    assert info.tokens == stored.lengths.sum()


def test_learned_tokens_within_a_row_are_those_that_are_predicted(jsonl, plain, tmp_path):
    stored = prepared(jsonl(TALKS), plain, tmp_path / "chat")
    for most in (1, 2, 15, 20, 10_000):
        counted = [int(stored.sample(it, most)[1][1:].sum()) for it in range(len(stored))]
        assert stored.learned_within(most).tolist() == counted


def test_workers_and_kinds_of_files_give_the_same_bytes(jsonl, plain, tmp_path):
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as parquet

    path = jsonl(TALKS)
    parquet.write_table(pa.Table.from_pylist(TALKS), tmp_path / "chat.parquet")
    datasets.Dataset.from_list(TALKS).save_to_disk(str(tmp_path / "saved"))
    sources = {
        "parquet": tmp_path / "chat.parquet",
        "saved": tmp_path / "saved",
        "memory": InMemory(texts=tuple(map(held, TALKS))),
    }
    prepared(path, plain, tmp_path / "one")
    expected = bin_path(tmp_path / "one").read_bytes()
    for name, source in sources.items():
        prepared(source, plain, tmp_path / name)
        assert bin_path(tmp_path / name).read_bytes() == expected, name


@pytest.mark.deep
def test_two_workers_give_the_same_bytes(jsonl, plain, tmp_path):
    path = jsonl(TALKS)
    for workers in (1, 2):
        prepared(path, plain, tmp_path / str(workers), num_workers=workers)
    for suffix in ("bin", "idx"):
        one, two = ((tmp_path / f"{workers}.{suffix}").read_bytes() for workers in (1, 2))
        assert one == two


def test_another_template_is_another_dataset(jsonl, plain, chat_tokenizer, tmp_path):
    path = jsonl(TALKS)
    first = prepared(path, plain, tmp_path / "chat").tokens.tolist()
    again = prepared(path, chat_tokenizer("marked"), tmp_path / "chat")
    assert again.tokens.tolist() != first


def test_bad_rows_are_counted_with_file_and_line_and_never_quoted(jsonl, plain, tmp_path):
    bad = {"messages": [{"role": "user", "content": SECRET}]}
    path = jsonl([*TALKS[:3], bad, "{" + SECRET + "\n", *TALKS[3:]])
    with pytest.raises(DataError) as caught:
        prepared(path, plain, tmp_path / "chat")
    text = str(caught.value)
    assert "2 of 42 lines (4.76%) are malformed, more than max_bad_line_ratio" in text
    assert f"{path}:4: no answer: there is no turn of the assistant" in text
    assert f"{path}:5: not JSON" in text
    assert SECRET not in text
    assert [it.name for it in tmp_path.iterdir() if it.name.startswith("chat.")] == ["chat.jsonl"]
    assert len(prepared(path, plain, tmp_path / "chat", max_bad_line_ratio=0.1)) == len(TALKS)


def test_a_single_bad_row_is_left_out_with_a_warning(jsonl, plain, tmp_path, caplog):
    bad = {"messages": [{"role": "user", "content": SECRET}]}
    path = jsonl([*TALKS[:3], bad, *TALKS[3:]])
    for _ in range(2):  # the second time as it was prepared
        assert len(prepared(path, plain, tmp_path / "chat")) == len(TALKS)
    warned = [it.getMessage() for it in caplog.records if it.levelname == "WARNING"]
    assert len(warned) == 1
    assert f"{path}:4: no answer: there is no turn of the assistant" in warned[0]
    assert SECRET not in warned[0]
    with pytest.raises(DataError, match=r"1 of 41 lines .* are malformed, more than"):
        prepared(path, plain, tmp_path / "other", max_bad_line_ratio=0)


def test_no_sample_with_an_answer_is_refused(jsonl, plain, tmp_path):
    path = jsonl([{"messages": [{"role": "user", "content": "a"}]}] * 3)
    with pytest.raises(DataError, match="no conversation with an answer in"):
        prepared(path, plain, tmp_path / "chat", max_bad_line_ratio=1)


def test_conversations_read_as_text_are_refused_with_the_remedy(jsonl, plain, tmp_path):
    with pytest.raises(DataError, match=r"conversations need data.format .--format. instructions"):
        prepare_dataset([jsonl(TALKS)], plain, tmp_path / "x", open_indexed_writer, progress=False)


def test_a_text_file_holds_no_conversations(plain, tmp_path):
    path = tmp_path / "chat.txt"
    path.write_text("Hello")
    with pytest.raises(DataError, match="is a text, which has no turns"):
        encoder(path, plain)


def test_text_and_instructions_are_not_mixed(jsonl, plain, tmp_path):
    chat, text = tmp_path / "chat", tmp_path / "text"
    prepared(jsonl(TALKS), plain, chat)
    prepare_dataset([InMemory(texts=("a b c",))], plain, text, open_indexed_writer, progress=False)
    assert holds_instructions([chat])
    assert not holds_instructions([text])
    with pytest.raises(DataError, match=r"chat is instruction data and .*text is text"):
        holds_instructions([text, chat])
    with pytest.raises(DataError, match="is text, not instruction data"):
        StoredSamples(text)


def test_modes_that_are_none_are_refused(jsonl, plain, tmp_path):
    prepared(jsonl(TALKS), plain, tmp_path / "chat")
    index = tmp_path / "chat.idx"
    content = bytearray(index.read_bytes())
    content[-1] = 7
    index.write_bytes(content)
    with pytest.raises(DataError, match="neither learned nor not"):
        StoredSamples(tmp_path / "chat")


def test_megatron_reads_the_same_pieces(jsonl, plain, tmp_path):
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    import moe_megatron.mcore  # noqa: F401 (before Megatron: prepares it for this machine)

    stored = prepared(jsonl(TALKS), plain, tmp_path / "chat")
    theirs = IndexedDataset(str(tmp_path / "chat"), multimodal=True)
    tokens, modes = zip(*(theirs[number] for number in range(len(theirs))), strict=True)
    assert np.concatenate(tokens).tolist() == stored.tokens.tolist()
    assert len(theirs.document_indices) == len(stored) + 1
    learned = np.concatenate([stored.sample(it, 10_000)[1] for it in range(len(stored))])
    lengths = [len(it) for it in tokens]
    assert np.repeat(modes, lengths).astype(bool).tolist() == learned.tolist()
