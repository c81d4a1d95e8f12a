"""The evaluations that a run made before it was resumed, as its own metrics hold them.

Rank 0 reads the file, and tells all others, which may not see it. It knows no model.
"""

import json
from collections.abc import Callable
from pathlib import Path

from moe_megatron.errors import DataError
from moe_megatron.mcore import world
from moe_megatron.telemetry.sinks.jsonl import read_metrics
from moe_megatron.telemetry.values.records import EvalRecord


def earlier_evaluations(
    metrics: Path | None, step: int, say: Callable[[str], None]
) -> tuple[EvalRecord, ...]:
    """Those up to a step, by rising steps, on every rank; every rank must call it.

    Of a step that was evaluated again, the last evaluation counts; what comes after the step of
    the checkpoint is made once more, and does not.

    Args:
        metrics: The metrics of the run; None: it has none.
        step: The step that the run goes on from.
        say: Is told on rank 0 where the file cannot be read; the run is then judged anew.
    """
    text = ""
    if world.rank() == 0 and metrics is not None and metrics.is_file():
        try:
            found = {
                it.step: it.to_json_dict()
                for it in read_metrics(metrics)
                if isinstance(it, EvalRecord) and it.split == "validation" and it.step <= step
            }
            text = json.dumps([found[it] for it in sorted(found)])
        except DataError as error:
            say(f"evaluations before step {step} do not count: {error}")
    text = world.agree_on_text(text)
    return tuple(map(EvalRecord.from_json_dict, json.loads(text))) if text else ()
