"""Instruction data as one of Megatron's datasets: rows of whole samples, shuffled for each epoch.

A row has, for each of its places, the token, the one to predict, whether that counts in the loss
and the place within its sample; where samples do not fill it, padding. Megatron blends, samples and
resumes it as any other. What was said, and with which template, is known to `data/instructions`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.megatron_dataset import MegatronDataset
from numpy.typing import NDArray

from moe_megatron.data.instructions.packing import packed_rows
from moe_megatron.data.instructions.stored import StoredSamples


class InstructionDataset(MegatronDataset):
    """The samples of one split of a prepared dataset; the arguments are Megatron's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._length = self.config.sequence_length
        self._rows = packed_rows(self.dataset, self._length, self.indices).rows
        self._order: tuple[int, NDArray[np.int64]] | None = None
        self._padding_token = int(self.config.tokenizer.eod)

    @staticmethod
    def numel_low_level_dataset(low_level_dataset: Any) -> int:  # Megatron's name
        """Number of samples, which are divided among the splits."""
        return len(low_level_dataset)

    @staticmethod
    def build_low_level_dataset(dataset_path: str, config: Any) -> Any:  # Megatron's name
        """The samples on disk."""
        return StoredSamples(Path(dataset_path))

    def __len__(self) -> int:
        """As many rows as are asked for, in as many epochs as they take; or one epoch."""
        return max(self.num_samples or 0, len(self._rows))

    def __getitem__(self, idx: int) -> Mapping[str, torch.Tensor]:
        """Tokens, labels, loss mask, positions and padding of a row, each [sequence]."""
        epoch, number = divmod(int(idx), len(self._rows))
        length, end = self._length, 0
        tokens = np.full(length, self._padding_token, dtype=np.int64)
        labels, positions = np.zeros_like(tokens), np.zeros_like(tokens)
        counts = np.zeros(length, dtype=np.float32)
        for sample in self._rows[self._shuffled(epoch)[number]]:
            ids, learned = self.dataset.sample(sample, length + 1)
            start, end = end, end + len(ids) - 1
            tokens[start:end], labels[start:end] = ids[:-1], ids[1:]
            counts[start:end] = learned[1:]
            positions[start:end] = np.arange(end - start)
        positions[end:] = np.arange(length - end)
        padding = np.arange(length) >= end
        row = {
            "tokens": tokens,
            "labels": labels,
            "loss_mask": counts,
            "position_ids": positions,
            "padding": padding,
        }
        return {name: torch.from_numpy(values) for name, values in row.items()}

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        """The order of the rows in an epoch."""
        if self._order is None or self._order[0] != epoch:
            seeds = (self.config.random_seed, self.index_split.value, epoch)
            order = np.random.default_rng(seeds).permutation(len(self._rows))
            self._order = (epoch, order)
        return self._order[1]
