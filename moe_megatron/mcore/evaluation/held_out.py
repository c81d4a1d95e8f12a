"""The held-out rows of a task: the same at each evaluation, each learned token counted once.

Text is cut into rows one after another, conversations are packed as in training. Rows that fill the
last batch do not count. It does not know the model.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from megatron.core import mpu
from megatron.core.datasets.gpt_dataset import GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split
from megatron.training import get_args, get_tokenizer
from numpy.typing import NDArray
from torch.utils.data import default_collate

from moe_megatron.data.held_out import HeldOut
from moe_megatron.data.index import read_tokens
from moe_megatron.data.instructions.stored import StoredSamples, holds_instructions
from moe_megatron.data.split import documents_of_splits
from moe_megatron.errors import DataError
from moe_megatron.mcore.loop.instruction_dataset import InstructionDataset
from moe_megatron.mcore.loop.task_dataset import TASK

_VALIDATION = 1
Row = dict[str, Any]


class _Rows(Protocol):
    def __len__(self) -> int: ...
    def __getitem__(self, number: int, /) -> Any: ...


class TextRows:
    """Documents one after another, cut into rows; the last one is filled up.

    Args:
        prefix: The indexed dataset.
        documents: Which of its documents.
        length: Tokens of a row.
    """

    def __init__(self, prefix: Path, documents: range, length: int) -> None:
        ends = np.cumsum(_lengths(prefix))
        bounds = np.concatenate(([0], ends))[[documents.start, documents.stop]]
        self._tokens = read_tokens(prefix)[bounds[0] : bounds[1]]
        self._length = length

    def __len__(self) -> int:
        return -(-max(len(self._tokens) - 1, 0) // self._length)

    def __getitem__(self, number: int, /) -> Row:
        """Tokens, labels, loss mask and positions of a row, each [sequence]."""
        length, first = self._length, number * self._length
        ids = self._tokens[first : first + length + 1].astype(np.int64)
        known = len(ids) - 1
        ids = np.pad(ids, (0, length + 1 - len(ids)))
        return {
            "tokens": torch.from_numpy(ids[:-1]),
            "labels": torch.from_numpy(ids[1:]),
            "loss_mask": (torch.arange(length) < known).float(),
            "position_ids": torch.arange(length),
        }


class HeldOutRows:
    """The rows of one task, dealt out to the processes as Megatron deals out batches.

    Args:
        data: What is held out.
        shares: Shares of training, validation and test.
        most: Batches to evaluate at most.

    Raises:
        DataError: There is nothing to predict.
    """

    def __init__(self, data: HeldOut, shares: Sequence[float], most: int) -> None:
        self.name, self._number = data.name, data.number
        args = get_args()
        rows = [_rows_of(Path(prefix), data, shares) for prefix in data.prefixes]
        # A little of each source, if not all of them are read.
        share = -(-most * args.eval_global_batch_size // len(rows))
        places = [(it, number) for it in rows for number in range(min(len(it), share))]
        self._places = places[: most * args.eval_global_batch_size]
        self.tokens = int(sum(rows[number]["loss_mask"].sum() for rows, number in self._places))
        if not self.tokens:
            raise DataError(
                f"the held-out data of '{data.name}' has no token to predict; give more data, a "
                "larger share of validation in data.split, or turn evaluations off with "
                "training.eval_interval null."
            )

    @property
    def batches(self) -> int:
        """Number of global batches of an evaluation."""
        size: int = get_args().eval_global_batch_size
        return -(-len(self._places) // size)

    def micro_batches(self) -> Iterator[Row]:
        """The micro-batches of this data parallel rank, in their order."""
        args = get_args()
        size, ranks = args.eval_micro_batch_size, mpu.get_data_parallel_world_size()
        first = mpu.get_data_parallel_rank() * size
        for start in range(first, self.batches * args.eval_global_batch_size, size * ranks):
            yield default_collate([self._row(start + place) for place in range(size)])

    def _row(self, place: int) -> Row:
        rows, number = self._places[place if place < len(self._places) else 0]
        row = {**rows[number], TASK: self._number}
        if place >= len(self._places):
            row["loss_mask"] = torch.zeros_like(row["loss_mask"])
        return row


def _lengths(prefix: Path) -> NDArray[np.int32]:
    """Tokens of each document."""
    stored = IndexedDataset(str(prefix))
    # A copy: the file is closed with the dataset, and what shows it would show nothing any more.
    return np.array(stored.sequence_lengths)


def _rows_of(prefix: Path, data: HeldOut, shares: Sequence[float]) -> _Rows:
    args = get_args()
    instructions = holds_instructions([prefix])
    stored = StoredSamples(prefix) if instructions else None
    number = len(_lengths(prefix)) if stored is None else len(stored)
    documents = range(number) if data.whole else documents_of_splits(number, shares)[_VALIDATION]
    if stored is None:
        return TextRows(prefix, documents, args.seq_length)
    config = GPTDatasetConfig(
        random_seed=args.seed,
        sequence_length=args.seq_length,
        blend=([str(prefix)], None),
        split="1",
        tokenizer=get_tokenizer(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
    )
    indices = np.arange(documents.start, documents.stop, dtype=np.int32)
    return InstructionDataset(stored, str(prefix), indices, None, Split.valid, config)
