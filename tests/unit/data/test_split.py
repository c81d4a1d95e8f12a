"""Splits are Megatron's, and one that would be empty is refused."""

import re
from importlib import import_module

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_megatron.data.split import check_splits, documents_of_splits
from moe_megatron.errors import DataError


@given(st.integers(0, 3000), st.tuples(*[st.floats(0.01, 1.0)] * 3))
def test_every_document_is_in_one_split(count, parts):
    dealt = documents_of_splits(count, [part / sum(parts) for part in parts])
    assert [number for split in dealt for number in split] == list(range(count))


@pytest.mark.parametrize("count", [1, 10, 11, 19, 20, 21])
@pytest.mark.parametrize("split", ["95,5,0", "90,5,5", "100,0,0"])
def test_documents_are_those_of_megatron(count, split):
    import_module("moe_megatron.mcore")  # prepares Megatron for this machine, so it comes first
    from megatron.core.datasets.blended_megatron_dataset_config import (
        convert_split_vector_to_split_matrix,
        parse_and_normalize_split,
    )

    vector = parse_and_normalize_split(split)
    matrix = convert_split_vector_to_split_matrix(vector)
    theirs = [
        range(0) if part is None else range(round(part[0] * count), round(part[1] * count))
        for part in matrix
    ]
    assert list(map(len, documents_of_splits(count, vector))) == list(map(len, theirs))


@pytest.fixture
def dataset(tmp_path, plain_writer):
    def write(num_documents):
        prefix = tmp_path / f"of_{num_documents}"
        writer = plain_writer.open_plain(prefix, 300)
        for _ in range(num_documents):
            writer.add_document([1, 2, 3])
        writer.finalize()
        return prefix

    return write


@pytest.mark.parametrize("count", [1, 10])
def test_dataset_without_documents_for_validation_is_refused(dataset, count):
    message = rf"of_{count} has {count} documents?, and data.split gives validation 5 % of them"
    with pytest.raises(DataError, match=message):
        check_splits(dataset(count), (0.95, 0.05, 0.0))


@pytest.mark.parametrize(("count", "shares"), [(21, (0.95, 0.05, 0.0)), (1, (1.0, 0.0, 0.0))])
def test_dataset_of_enough_documents_passes(dataset, count, shares):
    check_splits(dataset(count), shares)


@pytest.mark.parametrize("share", [1, 5, 30, 49])
def test_what_the_message_calls_enough_is_enough(dataset, share):
    shares = (1 - share / 100, share / 100, 0.0)
    with pytest.raises(DataError) as refusal:
        check_splits(dataset(1), shares)
    enough = int(re.search(r"into (\d+) documents or more", str(refusal.value)).group(1))
    assert all(documents_of_splits(more, shares)[1] for more in range(enough, 3 * enough))
