"""Whether a run can train on instruction data: its settings, and rows of every dataset it reads.

It is asked before processes start, and needs neither torch nor Megatron.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from moe_megatron.config import RunConfig
from moe_megatron.data.instructions.packing import packed_rows
from moe_megatron.data.instructions.stored import StoredSamples
from moe_megatron.data.split import documents_of_splits
from moe_megatron.errors import ConfigError


def check_settings(config: RunConfig) -> None:
    """Refuse what cannot train on instruction data.

    Raises:
        ConfigError: A setting does not go with it.
    """
    parallel = config.parallel
    if parallel.context_parallel_size > 1:
        raise ConfigError(
            f"context_parallel_size ({parallel.context_parallel_size}) cuts sequences anywhere, "
            "and samples of instruction data must stay whole; set it to 1, and share the work by "
            "tensor, expert or pipeline parallelism."
        )
    if config.model.num_prediction_layers:
        raise ConfigError(
            "layers for multi-token prediction (model.num_prediction_layers) are not trained on "
            "instruction data; set it to 0."
        )
    if config.training.recompute == "full" and parallel.pipeline_parallel_size > 1:
        raise ConfigError(
            "training.recompute 'full' with a pipeline computes layers when the learned tokens of "
            "their micro-batch are no longer known; set training.recompute to none, or "
            "pipeline_parallel_size to 1."
        )


def rows_of_splits(
    prefixes: Sequence[Path], length: int, shares: Sequence[float]
) -> tuple[str, ...]:
    """What a person should know of the rows of all datasets; every split must have some.

    Args:
        prefixes: Prepared instruction data.
        length: Tokens of a row.
        shares: Shares of training, validation and test, which add up to 1.

    Raises:
        DataError: A split has no sample with an answer within a row.
    """
    found = []
    for prefix in prefixes:
        stored = StoredSamples(prefix)
        for share, numbers in zip(shares, documents_of_splits(len(stored), shares), strict=True):
            if share > 0:
                packed = packed_rows(stored, length, np.asarray(numbers, dtype=np.int64))
                found += [f"{prefix}: {line}" for line in packed.lines]
    return tuple(found)
