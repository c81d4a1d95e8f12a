"""Counts of tokens by expert for each task, in the files that have them.

A task is a name, and its counts are int64 [L, E], as all counts of a run are. It does not know
which step or run they are of.
"""

from collections.abc import Mapping
from typing import Any

from moe_megatron.telemetry.values.json_fields import Int64Array, read_int_array, read_object

BY_TASK = "by_task"
"""The field, which is absent where there are no tasks."""


def write_by_task(by_task: Mapping[str, Int64Array]) -> dict[str, Any]:
    """The field with its value; nothing without tasks."""
    return {BY_TASK: {name: it.tolist() for name, it in by_task.items()}} if by_task else {}


def read_by_task(fields: Mapping[str, Any]) -> dict[str, Int64Array]:
    """The inverse of `write_by_task`.

    Raises:
        DataError: The field holds something else.
    """
    given = read_object(fields.get(BY_TASK, {}), BY_TASK)
    return {name: read_int_array(it, f"{BY_TASK}.{name}", ndim=2) for name, it in given.items()}


def find_task_problem(by_task: Mapping[str, Int64Array], counts: Int64Array) -> str | None:
    """Says what is wrong with counts by task; None if nothing is.

    They add up to at most the counts of all tokens.
    """
    left = counts
    for name, of_task in by_task.items():
        if of_task.shape != counts.shape or of_task.dtype != counts.dtype:
            return (
                f"the counts of task '{name}' are {of_task.dtype} {list(of_task.shape)}, not "
                f"{counts.dtype} {list(counts.shape)}"
            )
        left = left - of_task
        if of_task.size and of_task.min() < 0:
            return f"the counts of task '{name}' must not be negative"
    if left.size and left.min() < 0:
        return "tasks have more tokens of an expert than it got"
    return None
