import pytest

from moe_megatron.data.index import inspect
from moe_megatron.mcore.loop.indexed_dataset import open_indexed_dataset

DOCUMENTS = [[1, 2, 3], [7], [5, 4, 3, 2]]


def write(prefix, documents, vocab_size=300):
    writer = open_indexed_dataset(prefix, vocab_size)
    for document in documents:
        writer.add_document(document)
    writer.finalize()
    writer.close()
    return writer


def read(prefix):
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    dataset = IndexedDataset(str(prefix))
    assert dataset.document_indices.tolist() == list(range(len(dataset) + 1))
    return [dataset[i].tolist() for i in range(len(dataset))]


def test_documents_come_back_from_megatron(tmp_path):
    write(tmp_path / "x", DOCUMENTS)
    assert read(tmp_path / "x") == DOCUMENTS


@pytest.mark.parametrize(("vocab_size", "dtype"), [(8192, "uint16"), (65_500, "int32")])
def test_token_size_follows_the_vocabulary_and_inspect_agrees(tmp_path, vocab_size, dtype):
    writer = write(tmp_path / "x", DOCUMENTS, vocab_size)
    info = inspect(tmp_path / "x")
    assert writer.dtype == info.dtype == dtype
    assert (info.documents, info.tokens) == (3, 8)


def test_appended_parts_equal_one_whole(tmp_path):
    write(tmp_path / "whole", DOCUMENTS)
    write(tmp_path / "a", DOCUMENTS[:1])
    write(tmp_path / "b", DOCUMENTS[1:])
    writer = open_indexed_dataset(tmp_path / "merged", 300)
    writer.add_index(tmp_path / "a")
    writer.add_index(tmp_path / "b")
    writer.finalize()
    for suffix in (".bin", ".idx"):
        merged, whole = (tmp_path / f"{name}{suffix}" for name in ("merged", "whole"))
        assert merged.read_bytes() == whole.read_bytes()


def test_token_too_large_for_the_vocabulary_is_an_error(tmp_path):
    writer = open_indexed_dataset(tmp_path / "x", 300)
    with pytest.raises(OverflowError):
        writer.add_document([70_000])
    writer.close()
