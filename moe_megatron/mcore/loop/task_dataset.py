"""Which task each sample of a run is of: a thin dataset around Megatron's.

Megatron's blend says from which of its datasets a sample is; a table says of which task that
dataset is. Names of tasks are known to the configuration (`data.tasks`), here they are numbers.
"""

from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset

TASK = "task_id"
"""The key that samples have where the data has tasks, and others have not."""

TASKS_OF_DATA = "moe_tasks_of_data"
"""Attribute of Megatron's arguments: the task of each dataset, in the order of the blend."""


class TaskDataset(Dataset[dict[str, Any]]):
    """The samples of a dataset, each with the number of its task.

    Args:
        dataset: One of Megatron's: a blend, or one dataset alone.
        tasks: The task of each dataset of the blend, by its place.
    """

    def __init__(self, dataset: Any, tasks: Sequence[int]) -> None:
        self._dataset = dataset
        self._tasks = tuple(tasks)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        """The sample, with `TASK` in addition to what it has."""
        sample = self._dataset[idx]
        return {**sample, TASK: self._tasks[int(sample.get("dataset_id", 0))]}

    def __getattr__(self, name: str) -> Any:
        """What Megatron asks of a dataset, such as its split."""
        if name == "_dataset":  # while it is copied, before it has one
            raise AttributeError(name)
        return getattr(self._dataset, name)
