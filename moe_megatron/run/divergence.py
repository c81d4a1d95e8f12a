"""Whether a run has diverged: its last steps had no finite loss or gradients.

Recovery policies look at single steps while a run goes on; this looks at how it ended. It knows no
processes; only rank 0 has a history to look at.
"""

import math

from moe_megatron.run.history import History
from moe_megatron.telemetry.values.records import StepRecord

_LAST = 3
"""Steps in a row that make a divergence at the end; a single one may be a bad batch."""


def divergence(history: History) -> str:
    """One paragraph with the step from which on nothing was finite; "" if the run is sound."""
    first = 0
    for record in reversed(history.steps):
        if not _is_lost(record):
            break
        first = record.step
    if not first or history.steps[-1].step - first + 1 < min(_LAST, len(history.steps)):
        return ""
    rate = max((it.learning_rate or 0.0 for it in history.steps), default=0.0)
    return (
        f"the loss or its gradients stopped being finite at step {first} and did not recover, so "
        f"the training has diverged; lower the learning rate (its peak was {rate:.3g}, try "
        f"{min(rate / 10, 1e-3):.1g}), lengthen the warmup, or look at the text of that step."
    )


def _is_lost(record: StepRecord) -> bool:
    """Not every skipped step: loss scaling and policies skip sound ones, without or with a norm."""
    known = (it for it in (record.loss, record.grad_norm) if it is not None)
    return not all(map(math.isfinite, known))
