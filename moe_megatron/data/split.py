"""Which documents of an indexed dataset train, validate and test, as Megatron deals them out.

    split i of N documents: from round(N * (s_1 + ... + s_(i-1))) to round(N * (s_1 + ... + s_i))

Megatron 0.19 looks for samples in an empty split forever, so it is refused here, before a process
starts.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path

from moe_megatron.data.index import inspect
from moe_megatron.errors import DataError

SPLITS = ("training", "validation", "test")


def documents_of_splits(num_documents: int, shares: Sequence[float]) -> tuple[range, ...]:
    """The documents of each split, in the order of the dataset.

    Args:
        num_documents: Documents of the dataset.
        shares: Shares of the splits, which add up to 1.
    """
    bounds = [round(bound * num_documents) for bound in accumulate(shares, initial=0.0)]
    return tuple(range(first, last) for first, last in pairwise(bounds))


def check_splits(prefix: Path, shares: Sequence[float]) -> None:
    """Refuse a dataset that has too few documents for its splits.

    Args:
        prefix: The indexed dataset.
        shares: Shares of training, validation and test, which add up to 1.

    Raises:
        DataError: A split that has a share gets no document.
    """
    count = inspect(prefix).documents
    splits = zip(SPLITS, shares, documents_of_splits(count, shares), strict=True)
    for split, share, documents in splits:
        if share > 0 and not documents:
            raise DataError(
                f"{prefix} has {count} document{'' if count == 1 else 's'}, and data.split gives "
                f"{split} {100 * share:g} % of them, which is none. Divide the text into "
                f"{_enough(shares)} documents or more (files of a folder, or lines of JSONL), "
                "change data.split, or train without evaluations: training.eval_interval null."
            )


def _enough(shares: Sequence[float]) -> int:
    """A number of documents from which on every split that has a share gets one."""
    return int(1 / min(share for share in shares if share > 0)) + 1
