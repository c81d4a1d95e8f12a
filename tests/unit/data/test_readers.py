import gzip
import json

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from moe_megatron.data.readers import HOPELESS_LINES, ShardReader, read_texts
from moe_megatron.data.shards import InMemory, Shard, expand_sources, plan_parts
from moe_megatron.errors import DataError


def read(path, num_parts=1, **options):
    """Texts of all shards, and their readers."""
    parts = plan_parts(expand_sources([path]), num_parts)
    readers = [ShardReader(shard, **options) for part in parts for shard in part]
    return [text for reader in readers for text in reader], readers


def as_jsonl(texts):
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


def test_txt_file_is_one_document(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfthree")
    assert list(read_texts([tmp_path])) == ["one\n\ntwo\n", "three"]


def test_txt_that_is_not_utf8_is_reported_with_its_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\ncaf\xe9\n")
    found, (reader,) = read(path)
    assert found == []
    assert str(reader.bad_lines[0]) == f"{path}:1: not UTF-8 (byte 8, line 2 of the file)"


def test_every_malformed_line_is_counted_and_named(jsonl):
    path = jsonl(
        [
            b'\xef\xbb\xbf{"text": "first"}',
            b"{broken",
            b"",
            {"body": "x"},
            {"text": 7},
            {"text": None},
            b'{"text": "caf\xe9"}',
            [1, 2],
            b'{"text": "\\ud800"}',
            b"[" * 100_000,
            {"text": " \n"},
            b'{"text": "last"}\r',
        ]
    )
    found, (reader,) = read(path)
    assert found == ["first", "last"]
    assert (reader.lines, reader.bad, reader.empty) == (12, 8, 2)
    messages = [str(line) for line in reader.bad_lines]
    assert len(messages) == 5
    for message, expected in zip(
        messages,
        [
            ":2: not JSON",
            ":4: no key 'text' (keys: 'body')",
            ":5: 'text' is int, not a string",
            ":6: 'text' is NoneType, not a string",
            ":7: not UTF-8 (byte 13 of the line)",
        ],
        strict=True,
    ):
        assert message.startswith(f"{path}{expected}")


@given(
    texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=30), max_size=12),
    cuts=st.lists(st.integers(0, 400), max_size=4),
)
def test_byte_ranges_cut_anywhere_lose_and_repeat_nothing(tmp_path_factory, texts, cuts):
    path = tmp_path_factory.mktemp("cut") / "x.jsonl"
    content = as_jsonl(texts)
    path.write_bytes(content)
    ends = sorted({min(cut, len(content)) for cut in cuts} | {len(content)})
    found = []
    lines = 0
    for start, stop in zip([0, *ends], ends, strict=False):
        if start < stop:
            reader = ShardReader(
                Shard(kind="jsonl", path=str(path), size=stop - start, start=start, stop=stop)
            )
            found += reader
            lines += reader.lines
    assert found == [text for text in texts if text.strip()]
    assert lines == len(texts)


def test_last_line_without_newline_is_read(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(as_jsonl(["a", "b"]).rstrip(b"\n"))
    assert list(read_texts([path])) == ["a", "b"]


def test_other_text_key_is_read(jsonl):
    assert list(read_texts([jsonl([{"body": "x"}])], "body")) == ["x"]


def test_hopeless_file_stops_early(jsonl):
    path = jsonl([{"body": "x"}] * HOPELESS_LINES + [{"text": "x"}])
    with pytest.raises(
        DataError, match=r"first 1000 lines of .* all malformed .*text_key \('text'"
    ):
        read(path)
    assert read(path, all_may_be_bad=True)[0] == ["x"]


def test_gz_is_read_and_a_truncated_one_refused(tmp_path, texts):
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(as_jsonl(texts)))
    found, (reader,) = read(path)
    assert found == texts
    assert reader.position == path.stat().st_size
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"damaged or truncated .* copy or download it again"):
        read(path)
    path.write_bytes(b"not gzip")
    with pytest.raises(DataError, match="is not gzip data, which its name says; rename it if it"):
        read(path)


def test_zst_of_several_frames_is_read_and_a_truncated_one_refused(tmp_path, texts):
    path = tmp_path / "x.jsonl.zst"
    half = len(texts) // 2
    frames = [zstandard.compress(as_jsonl(part)) for part in (texts[:half], texts[half:])]
    path.write_bytes(b"".join(frames))
    assert read(path)[0] == texts
    path.write_bytes(b"".join(frames)[:-5])
    with pytest.raises(DataError, match="damaged or truncated"):
        read(path)
    path.write_bytes(b"not zstd")
    with pytest.raises(DataError, match="is not zstd data, which its name says; rename it if it"):
        read(path)


@pytest.mark.parametrize("num_parts", [1, 2, 7])
def test_parquet_is_read_by_row_group(tmp_path, texts, num_parts):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "x.parquet"
    table = pa.table({"text": [*texts, None], "other": range(len(texts) + 1)})
    parquet.write_table(table, path, row_group_size=7)
    found, readers = read(path, num_parts)
    assert found == texts
    assert len(readers) == num_parts
    assert sum(reader.bad for reader in readers) == 1


def test_parquet_without_the_column_or_cut_off_names_the_remedy(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "x.parquet"
    parquet.write_table(pa.table({"body": ["x"]}), path)
    with pytest.raises(DataError, match="no column 'text'; its columns are body: set text_key"):
        read(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="not a complete parquet file"):
        read(path)


@pytest.mark.parametrize("num_parts", [1, 3])
def test_saved_dataset_is_read_by_rows(tmp_path, texts, num_parts):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = datasets.Dataset.from_dict({"text": texts})
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=rows, test=rows.select([0])).save_to_disk(tmp_path / "splits")
    datasets.DatasetDict(a=rows, b=rows).save_to_disk(tmp_path / "unclear")
    assert read(tmp_path / "one", num_parts)[0] == texts
    assert read(tmp_path / "splits", num_parts)[0] == texts
    assert read(tmp_path / "splits" / "test", num_parts)[0] == texts[:1]
    with pytest.raises(DataError, match="splits a, b and none is called train; name one"):
        read(tmp_path / "unclear")
    with pytest.raises(DataError, match="no column 'body'"):
        read(tmp_path / "one", text_key="body")


def test_strings_in_memory_are_read():
    assert list(read_texts([InMemory(texts=("a", "", "b"))])) == ["a", "b"]


def test_file_that_disappears_is_reported(tmp_path):
    shard = Shard(kind="jsonl", path=str(tmp_path / "gone.jsonl"), size=1)
    with pytest.raises(DataError, match=r"cannot read .*gone.jsonl: No such file"):
        list(ShardReader(shard))
