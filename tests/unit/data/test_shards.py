import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_megatron.data.shards import END, InMemory, SourceFile, expand_sources, plan_parts
from moe_megatron.errors import DataError


def test_expand_lists_a_directory_sorted_and_skips_the_rest(tmp_path, caplog):
    for name in ("b.txt", "a.jsonl", "sub/c.TXT", ".hidden/d.txt", "notes.md"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    files = expand_sources([tmp_path])
    assert [(file.path.removeprefix(f"{tmp_path}/"), file.kind) for file in files] == [
        ("a.jsonl", "jsonl"),
        ("b.txt", "txt"),
        ("sub/c.TXT", "txt"),
    ]
    assert "skipped 1 other files" in caplog.text
    assert "notes.md" in caplog.text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.jsonl", "missing.jsonl does not exist; check the path"),
        ("empty.jsonl", "empty.jsonl is empty"),
        ("book.pdf", "unsupported type; supported are .txt, .jsonl"),
        ("folder", "holds no data file; supported are"),
        ("/no/such/file", "does not exist"),
    ],
)
def test_expand_of_an_unusable_path_names_the_remedy(tmp_path, name, message):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "book.pdf").write_text("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=message):
        expand_sources([str(tmp_path / name)])


def test_expand_of_nothing_names_the_remedy():
    with pytest.raises(DataError, match="no data source was given; name at least one"):
        expand_sources([])
    with pytest.raises(DataError, match="list of texts is empty"):
        expand_sources([InMemory(texts=())])


@pytest.mark.parametrize("name", ["a/b", "Salesforce/wikitext:wikitext-103-raw-v1:train"])
def test_expand_takes_a_missing_path_that_looks_like_one_for_a_hub_id(name):
    (file,) = expand_sources([name])
    assert (file.kind, file.path) == ("hub", name)


def test_identity_of_texts_depends_on_where_they_are_divided():
    first, second = expand_sources([InMemory(texts=("ab", "c")), InMemory(texts=("a", "bc"))])
    assert first.identity() != second.identity()


@given(
    sizes=st.lists(st.integers(1, 10_000), min_size=1, max_size=8),
    num_parts=st.integers(1, 9),
)
def test_parts_cover_every_byte_once_and_in_order(sizes, num_parts):
    files = [SourceFile(kind="jsonl", path=str(i), size=size) for i, size in enumerate(sizes)]
    parts = plan_parts(files, num_parts)
    assert 1 <= len(parts) <= num_parts
    assert all(parts)
    covered = {}
    for shard in (shard for part in parts for shard in part):
        assert shard.start == covered.get(shard.path, 0)
        assert list(covered) in ([str(i) for i in range(int(shard.path))], list(covered))
        covered[shard.path] = sizes[int(shard.path)] if shard.stop == END else shard.stop
    assert covered == {str(i): size for i, size in enumerate(sizes)}


def test_parts_of_one_large_file_are_even():
    parts = plan_parts([SourceFile(kind="jsonl", path="x", size=1000)], 4)
    assert [sum(shard.size for shard in part) for part in parts] == [250] * 4


def test_parts_of_texts_carry_only_their_own():
    (file,) = expand_sources([InMemory(texts=tuple("abcde"))])
    parts = plan_parts([file], 2)
    assert [shard.texts for part in parts for shard in part] == [("a", "b"), ("c", "d", "e")]
