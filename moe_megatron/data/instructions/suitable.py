"""Whether a run can train on instruction data: its settings, and rows of every dataset it reads.

It is asked before processes start, and needs neither torch nor Megatron.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from moe_megatron.config import RunConfig
from moe_megatron.config.data import TEXT
from moe_megatron.config.own_code import names_code
from moe_megatron.config.preferences import PREFERENCES
from moe_megatron.data.instructions.packing import packed_rows
from moe_megatron.data.instructions.stored import holds_instructions, holds_pairs, opened
from moe_megatron.data.split import documents_of_splits
from moe_megatron.errors import ConfigError, DataError


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


def check_pairs(config: RunConfig) -> None:
    """Refuse what cannot train on pairs of answers, besides what `check_settings` refuses.

    Raises:
        ConfigError: A setting does not go with them.
    """
    if config.evaluates_tasks:
        raise ConfigError(
            "data.tasks and evaluation measure answers of conversations and texts, and pairs of "
            "answers are measured by training.eval_interval alone; leave data.tasks and the fields "
            "of evaluation out."
        )


def check_kind(prefixes: Sequence[Path], data_format: str) -> None:
    """Refuse pairs of answers where conversations are said to be, and the other way round.

    Args:
        prefixes: Prepared datasets.
        data_format: What they were said to hold, as `data.format` names it.

    Raises:
        DataError: They hold something else.
    """
    if data_format == TEXT or names_code(data_format):
        return  # data says itself what it is
    pairs = holds_instructions(prefixes) and holds_pairs(prefixes)
    if pairs and data_format != PREFERENCES:
        raise DataError(
            f"{prefixes[0]} holds pairs of a chosen and a rejected answer, and not conversations "
            f"({data_format}); train on it with the task or format {PREFERENCES}."
        )
    if not pairs and data_format == PREFERENCES:
        raise DataError(
            f"{prefixes[0]} does not hold pairs of a chosen and a rejected answer; prepare them "
            f"with `moe-megatron data prepare --format {PREFERENCES}`, or name another task."
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
        stored = opened(prefix)
        for share, numbers in zip(shares, documents_of_splits(len(stored), shares), strict=True):
            if share > 0:
                packed = packed_rows(stored, length, np.asarray(numbers, dtype=np.int64))
                found += [f"{prefix}: {line}" for line in packed.lines]
    return tuple(found)
