import json
import os
import resource

import pytest

from moe_megatron.data.index import inspect
from moe_megatron.data.manifest import describe_origin, find_prepared
from moe_megatron.data.prepare import choose_num_workers, prepare_dataset
from moe_megatron.data.shards import InMemory, SourceFile, expand_sources
from moe_megatron.errors import ConfigError, DataError


@pytest.fixture
def prepare(tmp_path, tokenizer, plain_writer):
    """`prepare_dataset` into tmp_path/out/data."""

    def run(*sources, **options):
        options = {"num_workers": 1, "progress": False} | options
        prefix = tmp_path / "out" / "data"
        return prepare_dataset(sources, tokenizer, prefix, plain_writer.open_plain, **options)

    return run


def files_below(directory):
    return sorted(path.name for path in directory.rglob("*"))


def test_documents_come_back_token_by_token(prepare, texts, tokenizer, plain_writer):
    dataset = prepare(InMemory(texts=tuple(texts)))
    documents = plain_writer.read_documents(dataset.prefix)
    assert [document[-1] for document in documents] == [tokenizer.eod_id] * len(texts)
    assert [tokenizer.decode(document[:-1]) for document in documents] == texts
    assert (dataset.documents, dataset.tokens) == (len(texts), sum(map(len, documents)))
    assert inspect(dataset.prefix).tokens == dataset.tokens
    assert dataset.dtype == "uint16"


def test_nothing_but_the_dataset_is_left(prepare, tmp_path, texts):
    prepare(InMemory(texts=tuple(texts)))
    assert files_below(tmp_path / "out") == ["data.bin", "data.idx", "data.json"]


def test_sources_are_appended_in_order(prepare, jsonl, tokenizer, plain_writer):
    first, second = jsonl([{"text": "b"}], "b.jsonl"), jsonl([{"text": "a"}], "a.jsonl")
    dataset = prepare(first, InMemory(texts=("m",)), second)
    documents = plain_writer.read_documents(dataset.prefix)
    assert [tokenizer.decode(document[:-1]) for document in documents] == ["b", "m", "a"]


def test_very_long_document_stays_one(prepare, tokenizer, plain_writer):
    text = "".join(f"line {i}\n" for i in range(150_000)) + "z" * 1_200_000
    (document,) = plain_writer.read_documents(prepare(InMemory(texts=(text,))).prefix)
    assert tokenizer.decode(document[:-1]) == text


def test_repeated_call_does_nothing(prepare, jsonl):
    path = jsonl([{"text": "x"}])
    first = prepare(path)
    written = first.prefix.with_name("data.bin").stat().st_mtime_ns
    assert prepare(path) == first
    assert first.prefix.with_name("data.bin").stat().st_mtime_ns == written


def test_changed_source_key_or_lost_file_prepares_again(prepare, jsonl):
    prepare(jsonl([{"text": "x"}]))
    path = jsonl([{"text": "x", "body": "y"}, {"text": "z", "body": "y"}])
    assert prepare(path).documents == 2
    os.utime(path, ns=(1, 1))
    changed = prepare(path)
    manifest = json.loads(changed.prefix.with_name("data.json").read_text())
    assert manifest["sources"][0]["mtime_ns"] == 1
    assert prepare(path, text_key="body").documents == 2
    changed.prefix.with_name("data.idx").unlink()
    prepare(path, text_key="body")
    assert inspect(changed.prefix).documents == 2


def test_prepared_dataset_is_found_for_its_sources_tokenizer_and_ratio_only(
    prepare, jsonl, tokenizer
):
    path = jsonl([{"text": "x"}] * 9 + [b"broken"])
    dataset = prepare(path, max_bad_line_ratio=0.1)

    def find(fingerprint=tokenizer.fingerprint, ratio=0.1):
        origin = describe_origin(expand_sources([path]), fingerprint, tokenizer.eod_id, "text")
        return find_prepared(dataset.prefix, origin, ratio)

    assert find() == dataset
    assert find(fingerprint="other") is None
    assert find(ratio=0.05) is None
    jsonl([{"text": "y"}])
    assert find() is None


def test_malformed_lines_below_the_limit_are_left_out_and_named(prepare, jsonl, caplog):
    path = jsonl([{"text": "x"}] * 8 + [b"broken", b""])
    dataset = prepare(path, max_bad_line_ratio=0.2)
    assert (dataset.lines, dataset.documents, dataset.bad_lines, dataset.empty_documents) == (
        10,
        8,
        1,
        1,
    )
    assert "1 of 10 lines (10.00%) are malformed and were left out" in caplog.text
    assert f"{path}:9: not JSON" in caplog.text


def test_malformed_lines_above_the_limit_stop_and_leave_nothing(prepare, jsonl, tmp_path):
    path = jsonl([{"text": "x"}] * 8 + [b"broken"] * 2)
    with pytest.raises(
        DataError, match=rf"2 of 10 lines .*\(10.00%\) allows; repair (?s:.*){path}:9: not JSON"
    ):
        prepare(path, max_bad_line_ratio=0.1)
    assert files_below(tmp_path / "out") == []


def test_source_without_any_text_names_the_remedy(prepare, jsonl):
    with pytest.raises(DataError, match=r"no document with any text in .*; check the files"):
        prepare(jsonl([{"text": " "}]))


def test_interrupt_leaves_nothing(prepare, tmp_path, texts, monkeypatch, plain_writer):
    def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(plain_writer.PlainWriter, "finalize", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare(InMemory(texts=tuple(texts)))
    assert files_below(tmp_path / "out") == []


def test_full_disk_leaves_the_old_dataset(prepare, tmp_path, texts):
    old = prepare(InMemory(texts=tuple(texts)))
    content = old.prefix.with_name("data.bin").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(DataError, match=r"cannot write .*File too large; raise"):
            prepare(InMemory(texts=tuple(texts * 9)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files_below(tmp_path / "out") == ["data.bin", "data.idx", "data.json"]
    assert old.prefix.with_name("data.bin").read_bytes() == content


@pytest.mark.parametrize("name", ["data.bin", "data.idx", "data.json"])
def test_file_of_another_tool_is_never_overwritten(prepare, tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("{}")
    with pytest.raises(DataError, match=f"{name} exists and was not written by this tool; choose"):
        prepare(InMemory(texts=("x",)))
    assert (tmp_path / "out" / name).read_text() == "{}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_workers": 0}, r"num_workers \(0\) must be at least 1"),
        ({"max_bad_line_ratio": 1.5}, r"\(1.5\) must be a share between 0 and 1"),
        ({"max_bad_line_ratio": float("nan")}, r"\(nan\) must be a share between 0 and 1"),
    ],
)
def test_number_out_of_range_names_the_range(prepare, options, message):
    with pytest.raises(ConfigError, match=message):
        prepare(InMemory(texts=("x",)), **options)


def test_number_of_workers_follows_the_amount_of_text(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))

    def choose(size, kind="jsonl"):
        return choose_num_workers([SourceFile(kind=kind, path="x", size=size)])

    workers, reason = choose(10_000_000)
    assert workers == 1
    assert "about 10 MB of text: a second process would cost more to start" in reason
    assert choose(400_000_000)[0] == 3
    assert choose(200_000_000, "jsonl.gz")[0] == 6
    workers, reason = choose(10_000_000_000)
    assert workers == 8
    assert "each of the 8 usable cores" in reason
