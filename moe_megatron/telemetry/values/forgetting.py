"""What a training has done to each task and to the base domain: before it, and at its end.

A table for people, and the same as JSON. Loss, perplexity and accuracy are of the same held-out
rows; "kept" is the share of a token's experts that it still has, the mean over layers and the
layer where it is least.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_megatron.config.aligned import aligned
from moe_megatron.files import replace_file
from moe_megatron.telemetry.values.records import EvalRecord
from moe_megatron.telemetry.values.task_scores import TaskScore

FORGETTING_FILE = "tasks.json"
COLUMNS = ("task", "tokens", "loss", "perplexity", "accuracy", "experts kept")


@dataclass(frozen=True, kw_only=True, slots=True)
class Forgetting:
    """Two evaluations of a run, the first and a later one."""

    first: EvalRecord
    last: EvalRecord

    @property
    def pairs(self) -> list[tuple[TaskScore, TaskScore]]:
        """Each task before and after."""
        later = {it.name: it for it in self.last.tasks}
        return [(it, later[it.name]) for it in self.first.tasks if it.name in later]

    def to_json_dict(self, layers: Sequence[int]) -> dict[str, Any]:
        """Plain JSON values.

        Args:
            layers: Numbers of the layers with experts, in the order of `kept`.
        """
        return {
            "before_step": self.first.step,
            "after_step": self.last.step,
            "layers": list(layers),
            "tasks": [
                {
                    "name": before.name,
                    "tokens": before.tokens,
                    "before": _values(before),
                    "after": _values(after),
                    "loss_change": after.loss - before.loss,
                    "experts_kept": list(after.kept),
                }
                for before, after in self.pairs
            ],
        }

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """Each task in words, under the heads `COLUMNS`."""
        return [_row(before, after) for before, after in self.pairs]

    def __str__(self) -> str:
        lines = aligned([COLUMNS, *self.rows])
        return "\n".join([f"tasks at step {self.first.step:,} -> {self.last.step:,}", *lines])


def forgetting(evaluations: Sequence[EvalRecord]) -> Forgetting | None:
    """The first and the last evaluation by tasks; None if there are not two.

    Args:
        evaluations: Of a run and its earlier attempts, in order.
    """
    found = [it for it in evaluations if it.tasks and it.split == "validation"]
    return Forgetting(first=found[0], last=found[-1]) if len(found) > 1 else None


def write_forgetting(run_dir: Path, found: Forgetting, layers: Sequence[int]) -> None:
    """Write the JSON beside the run's metrics."""
    content = json.dumps(found.to_json_dict(layers), indent=2)
    replace_file(run_dir / FORGETTING_FILE, [content.encode() + b"\n"])


def _values(score: TaskScore) -> dict[str, Any]:
    return {"loss": score.loss, "perplexity": score.perplexity, "accuracy": score.accuracy}


def _row(before: TaskScore, after: TaskScore) -> tuple[str, ...]:
    change = after.loss - before.loss
    right = "-"
    if before.accuracy is not None and after.accuracy is not None:
        right = f"{before.accuracy:.1%} -> {after.accuracy:.1%}"
    kept = "-"
    if after.kept:
        kept = f"{sum(after.kept) / len(after.kept):.1%} (least {min(after.kept):.1%})"
    return (
        before.name,
        f"{before.tokens:,}",
        f"{before.loss:.3f} -> {after.loss:.3f} ({change:+.3f})",
        f"{before.perplexity:,.1f} -> {after.perplexity:,.1f}",
        right,
        kept,
    )
