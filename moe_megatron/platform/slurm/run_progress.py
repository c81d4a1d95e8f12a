"""Reads from a run folder how far the run is and how the attempts of a job went.

Two files tell: the tracker beside the checkpoints, and the journal, which the launcher of the first
node begins for each attempt (`node`). What follows from it is the business of `verdict`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from moe_megatron.config.checkpoint_files import CHECKPOINTS, tracked_step
from moe_megatron.platform.slurm.verdict import Progress
from moe_megatron.telemetry.journal import Event, read_events


def newest_step(run_dir: Path) -> int | None:
    """The step of the newest checkpoint of a run; None if it has none."""
    return tracked_step(run_dir / CHECKPOINTS)


def read_progress(
    run_dir: Path, target: int, job: str | None, *, stopped: bool = False
) -> Progress:
    """Read the state of a run.

    Args:
        run_dir: Its folder.
        target: Its last step.
        job: Number of a job, whose attempts alone count; None for those of all jobs.
        stopped: The last attempt was asked to stop, whether or not the journal says so.
    """
    step = newest_step(run_dir)
    attempts = [a for a in _attempts(read_events(run_dir)) if job is None or a.job == job]
    if not attempts:
        return Progress(step=step, target=target)
    reached = [*(later.launched_at for later in attempts[1:]), step]
    fruitless = 0
    for attempt, end in zip(attempts, reached, strict=True):
        fruitless = 0 if (end or 0) > (attempt.began or 0) else fruitless + 1
    last = attempts[-1]
    return Progress(
        step=step,
        target=target,
        launched=True,
        began=last.began,
        fruitless=fruitless,
        stopped=stopped or last.stopped,
        code=last.code,
        reason=last.reason,
    )


@dataclass(slots=True)
class _Attempt:
    """One start of the ranks, as the journal tells it."""

    job: str | None
    launched_at: int | None
    """The step of the newest checkpoint at that time."""
    resumed_at: int | None = None
    """The step of the checkpoint that was loaded first; an older one if the newest is damaged."""
    stopped: bool = False
    code: int | None = None
    reason: str = ""

    @property
    def began(self) -> int | None:
        return self.launched_at if self.resumed_at is None else self.resumed_at


def _attempts(events: Iterable[Event]) -> list[_Attempt]:
    found: list[_Attempt] = []
    for event in events:
        fields = event.fields
        if event.kind == "launched":
            found.append(
                _Attempt(job=_text(fields.get("job")), launched_at=_whole(fields.get("step")))
            )
        elif not found:
            continue
        elif event.kind == "resumed" and found[-1].resumed_at is None:
            found[-1].resumed_at = _whole(fields.get("step"))
        elif event.kind == "stopping":
            found[-1].stopped = True
        elif event.kind == "trained":
            found[-1].stopped |= bool(fields.get("interrupted"))
        elif event.kind == "rank_died":
            found[-1].reason = str(fields.get("reason", ""))
        elif event.kind == "ended":
            found[-1].code = _whole(fields.get("code"))
            found[-1].reason = str(fields.get("reason") or found[-1].reason)
    return found


def _whole(value: object) -> int | None:
    return value if type(value) is int else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
