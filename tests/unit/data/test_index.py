import pytest

from moe_megatron.data.index import inspect, is_prefix
from moe_megatron.errors import DataError


@pytest.fixture
def prefix(tmp_path, plain_writer):
    prefix = tmp_path / "my.data"
    writer = plain_writer.open_plain(prefix, 70_000)
    for document in ([1, 2, 3], [69_999], [5, 6]):
        writer.add_document(document)
    writer.finalize()
    return prefix


def test_inspect_counts_what_was_written(prefix):
    info = inspect(prefix)
    assert (info.documents, info.tokens, info.dtype) == (3, 6, "int32")


def test_inspect_of_no_documents_is_zero(tmp_path, plain_writer):
    plain_writer.open_plain(tmp_path / "x", 300).finalize()
    assert inspect(tmp_path / "x").tokens == 0


def test_inspect_of_an_incomplete_copy_says_so(prefix):
    data = prefix.with_name("my.data.bin")
    data.write_bytes(data.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"20 bytes but its index describes 24: .* copy both"):
        inspect(prefix)


@pytest.mark.parametrize("size", [10, 36, 50])
def test_inspect_of_a_cut_index_says_so(prefix, size):
    index = prefix.with_name("my.data.idx")
    index.write_bytes(index.read_bytes()[:size])
    with pytest.raises(DataError, match=r"wrong header|cut short"):
        inspect(prefix)


def test_inspect_of_another_file_names_the_remedy(prefix):
    prefix.with_name("my.data.idx").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match=r"not a Megatron index .* prepare the dataset again"):
        inspect(prefix)


def test_inspect_of_float_data_refuses(prefix):
    index = prefix.with_name("my.data.idx")
    content = bytearray(index.read_bytes())
    content[17] = 7
    index.write_bytes(content)
    with pytest.raises(DataError, match="non-integer tokens"):
        inspect(prefix)


@pytest.mark.parametrize("missing", ["bin", "idx"])
def test_is_prefix_of_half_a_dataset_names_the_missing_file(prefix, missing):
    assert is_prefix(prefix)
    prefix.with_name(f"my.data.{missing}").unlink()
    with pytest.raises(DataError, match=rf"my.data.{missing} does not: .*half written"):
        is_prefix(prefix)


def test_is_prefix_of_nothing_is_false(tmp_path):
    assert not is_prefix(tmp_path / "nothing")
