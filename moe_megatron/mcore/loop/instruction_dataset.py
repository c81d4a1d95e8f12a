"""Instruction data as one of Megatron's datasets: rows of whole samples, shuffled for each epoch.

A row has, for each of its places, the token, the one to predict, whether that counts in the loss
and the place within its sample; where samples do not fill it, padding. Megatron blends, samples and
resumes it as any other. What was said, and with which template, is known to `data/instructions`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.gpt_dataset import GPTDatasetConfig
from megatron.core.datasets.megatron_dataset import MegatronDataset
from numpy.typing import NDArray

from moe_megatron.data.instructions.packed_row import row_of
from moe_megatron.data.instructions.packing import packed_rows
from moe_megatron.data.instructions.stored import opened


@dataclass
class InstructionDatasetConfig(GPTDatasetConfig):
    """Megatron's settings of datasets, and how pairs of answers are numbered."""

    first_pairs: Mapping[str, int] = field(default_factory=dict)
    """By the prefix of a dataset, the number of its first pair among all pairs of the run."""


class InstructionDataset(MegatronDataset):
    """The samples, or pairs, of one split of a prepared dataset; the arguments are Megatron's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._length = self.config.sequence_length
        self._rows = packed_rows(self.dataset, self._length, self.indices).rows
        self._order: tuple[int, NDArray[np.int64]] | None = None
        self._padding_token = int(self.config.tokenizer.eod)
        self._first_pair = getattr(self.config, "first_pairs", {}).get(str(self.dataset_path), 0)

    @staticmethod
    def numel_low_level_dataset(low_level_dataset: Any) -> int:  # Megatron's name
        """Number of samples, which are divided among the splits."""
        return len(low_level_dataset)

    @staticmethod
    def build_low_level_dataset(dataset_path: str, config: Any) -> Any:  # Megatron's name
        """The samples or pairs on disk."""
        return opened(Path(dataset_path))

    def __len__(self) -> int:
        """As many rows as are asked for, in as many epochs as they take; or one epoch."""
        return max(self.num_samples or 0, len(self._rows))

    def __getitem__(self, idx: int) -> Mapping[str, torch.Tensor]:
        """What `row_of` gives of a row, each [sequence]."""
        epoch, number = divmod(int(idx), len(self._rows))
        samples = self._rows[self._shuffled(epoch)[number]]
        row = row_of(
            self.dataset,
            samples,
            self._length,
            self._padding_token,
            first_pair=self._first_pair,
        )
        return {name: torch.from_numpy(values) for name, values in row.items()}

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        """The order of the rows in an epoch."""
        if self._order is None or self._order[0] != epoch:
            seeds = (self.config.random_seed, self.index_split.value, epoch)
            order = np.random.default_rng(seeds).permutation(len(self._rows))
            self._order = (epoch, order)
        return self._order[1]
