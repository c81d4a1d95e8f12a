"""Megatron's datasets over the indexed files that `moe_megatron.data` prepared: text or samples."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, MockGPTDataset
from megatron.core.datasets.utils import get_blend_from_list
from megatron.training import get_args, get_tokenizer

from moe_megatron.data.index import is_prefix
from moe_megatron.data.instructions.stored import (
    StoredPairs,
    holds_instructions,
    holds_pairs,
)
from moe_megatron.errors import DataError
from moe_megatron.mcore.loop import index_cache
from moe_megatron.mcore.loop.instruction_dataset import (
    InstructionDataset,
    InstructionDatasetConfig,
)
from moe_megatron.mcore.loop.stages import reads_samples
from moe_megatron.mcore.loop.task_dataset import TASKS_OF_DATA, TaskDataset


def train_valid_test_datasets(num_samples: list[int], vp_stage: int | None = None) -> Any:
    """Build the three datasets of a run; Megatron calls this on every rank.

    Args:
        num_samples: Number of samples for training, validation and test.
        vp_stage: Virtual pipeline stage, if any.

    Returns:
        Training, validation and test dataset; None for an empty split.
    """
    args = get_args()
    per_split = _blend_per_split(args)
    indices = _index_folder(args)
    dataset: Any = MockGPTDataset if args.mock_data else GPTDataset
    if holds_instructions(prefixes_in(_words(args))):
        if not args.calculate_per_token_loss:
            raise DataError(
                "instruction data is given by a flag of Megatron, where it would be trained on as "
                "text is; give its prefix in data.paths."
            )
        dataset = InstructionDataset
    config = InstructionDatasetConfig(
        random_seed=args.seed,
        sequence_length=args.seq_length,
        blend=get_blend_from_list(args.data_path),
        blend_per_split=per_split,
        split=None if per_split else args.split,
        path_to_cache=None if indices is None else str(indices),
        mmap_bin_files=args.mmap_bin_files,
        tokenizer=get_tokenizer(),
        reset_position_ids=args.reset_position_ids,
        reset_attention_mask=args.reset_attention_mask,
        eod_mask_loss=args.eod_mask_loss,
        create_attention_mask=False,
        first_pairs=first_pairs(prefixes_in(_words(args))),
    )
    builder = BlendedMegatronDatasetBuilder(dataset, num_samples, reads_samples, config)
    if indices is None or torch.distributed.get_rank() != 0:
        return _with_tasks(builder.build())
    with index_cache.checked(indices):  # Megatron lets rank 0 build first, and the others wait
        return _with_tasks(builder.build())


train_valid_test_datasets.is_distributed = True  # type: ignore[attr-defined]


def _with_tasks(splits: Any) -> Any:
    """The datasets of the splits, whose samples say their task if the data has tasks."""
    tasks = getattr(get_args(), TASKS_OF_DATA, ())
    return [it if it is None or not tasks else TaskDataset(it, tasks) for it in splits]


def _index_folder(args: Any) -> Path | None:
    """The folder of the indices, one for each state of the data; None if Megatron's is used."""
    if not args.data_cache_path:
        return None
    return index_cache.folder_of(Path(args.data_cache_path), _words(args))


def _words(args: Any) -> list[str]:
    """Weights and prefixes of all datasets of a run."""
    groups = (args.data_path, args.train_data_path, args.valid_data_path, args.test_data_path)
    return [word for group in groups for word in group or ()]


def prefixes_in(words: Sequence[str]) -> list[Path]:
    """The prefixes among words as `--data-path` takes them: prefixes alone, or after weights."""
    prefixes = [Path(word) for word in words]
    return [prefix for prefix in prefixes if is_prefix(prefix)]


def first_pairs(prefixes: Sequence[Path]) -> dict[str, int]:
    """By prefix, the number of a dataset's first pair among those of all; {} if they are no pairs.

    Args:
        prefixes: All datasets of a run; one may stand there twice.
    """
    numbers: dict[str, int] = {}
    if not holds_instructions(prefixes) or not holds_pairs(prefixes):
        return numbers
    total = 0
    for prefix in dict.fromkeys(prefixes):
        numbers[str(prefix)] = total
        total += len(StoredPairs(prefix))
    return numbers


def _blend_per_split(args: Any) -> list[Any] | None:
    paths = [args.train_data_path, args.valid_data_path, args.test_data_path]
    return [get_blend_from_list(path) for path in paths] if any(paths) else None
