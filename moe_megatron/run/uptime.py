"""What became of a run, from its folder alone: its state, its attempts, and where its time went.

It reads the journal and metrics.jsonl; `telemetry.uptime.present` looks for the processes that the
journal names. It loads no torch, prints nothing, and changes nothing.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from moe_megatron.config import CONFIG_FILE
from moe_megatron.errors import AGAIN, NO_PROGRESS, DataError
from moe_megatron.telemetry.journal import EVENTS_FILE, read_events
from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE
from moe_megatron.telemetry.uptime.account import Account
from moe_megatron.telemetry.uptime.attempts import Attempt, Attempts
from moe_megatron.telemetry.uptime.present import account_at, at_work, modified
from moe_megatron.telemetry.uptime.steps import StepTimes

State = Literal["running", "done", "stopped", "died", "vanished"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Uptime:
    """A run at one moment."""

    run_dir: Path
    state: State
    why: str
    """What the state means here, and why it came to it."""
    advice: str
    """What to do next."""
    step: int
    total_steps: int | None
    checkpoint: int | None
    """Step of the newest checkpoint that the journal knows."""
    attempts: Attempts
    account: Account

    def to_dict(self) -> dict[str, Any]:
        """The values as JSON, times in seconds."""
        used = self.account
        return {
            "run": str(self.run_dir),
            "state": self.state,
            "why": self.why,
            "advice": self.advice,
            "step": self.step,
            "total_steps": self.total_steps,
            "checkpoint": self.checkpoint,
            "started": used.started,
            "wall_seconds": used.wall,
            "goodput": used.goodput,
            "ettr": used.ettr,
            "kept_steps": used.kept_steps,
            "lost_steps": used.lost_steps,
            "seconds": used.rows(),
            "attempts": [_attempt_dict(attempt) for attempt in self.attempts.list],
        }


def _attempt_dict(attempt: Attempt) -> dict[str, Any]:
    names = ("number", "started", "host", "world_size", "resumed_step", "first_step", "trained")
    values = {name: getattr(attempt, name) for name in names}
    return {**values, "ended": attempt.end, "reason": attempt.end_reason}


def uptime(run_dir: Path, now: float | None = None) -> Uptime:
    """Read a run.

    Args:
        run_dir: Its folder.
        now: The present, in seconds since 1970; by default that of the clock.

    Raises:
        DataError: The folder has no journal of a run, or a damaged metrics.jsonl.
    """
    attempts = Attempts(read_events(run_dir))
    if not attempts.list:
        raise DataError(
            f"{run_dir / EVENTS_FILE} tells of no attempt to train: it is missing, empty or older "
            "than the first start. Give the folder of a run, such as runs/demo_moe."
        )
    steps = StepTimes.read(run_dir, attempts.list[0].resumed_step)
    recorded_at = modified(run_dir / METRICS_FILE)
    now = time.time() if now is None else now
    last = attempts.list[-1]
    sign = max(last.last_sign, recorded_at or 0.0)
    running = last.end is None and at_work(last, sign, now, steps.typical)
    state = _state(last, steps, running=running)
    used = account_at(attempts, steps, recorded_at, now, running=running)
    assert used is not None
    checkpoint = attempts.newest_checkpoint
    return Uptime(
        run_dir=run_dir,
        state=state,
        why=_why(state, last, now - sign),
        advice=_advice(state, last, run_dir, checkpoint),
        step=max(steps.last or 0, last.trained or 0, last.resumed_step),
        total_steps=steps.total_steps,
        checkpoint=checkpoint,
        attempts=attempts,
        account=used,
    )


def _state(last: Attempt, steps: StepTimes, *, running: bool) -> State:
    if running:
        return "running"
    if last.died_at is not None or last.code not in (None, 0, AGAIN):
        return "died"
    if last.code == AGAIN or (last.trained is not None and last.interrupted):
        return "stopped"
    if last.trained is not None or (last.code == 0 and steps.last == steps.total_steps):
        return "done"
    return "stopped" if last.code == 0 else "vanished"


def _why(state: State, last: Attempt, silent: float) -> str:
    if state == "running":
        return f"last sign of life {silent:.0f} s ago, on {last.host or 'an unknown machine'}"
    if state == "vanished":
        begun = "after" if last.first_step is not None else "before"
        return (
            f"its processes on {last.host or 'an unknown machine'} are gone {begun} its first step "
            "and left no word: they were killed together with their launcher, or the machine "
            "stopped"
        )
    return "" if state == "done" else last.end_reason


def _advice(state: State, last: Attempt, run_dir: Path, checkpoint: int | None) -> str:
    if state == "running":
        return ""
    if state == "done":
        report = run_dir / "report.html"
        return f"report: {report}" if report.exists() else ""
    if last.code == NO_PROGRESS:
        return (
            "it ended at the checkpoint it began with: find out why in "
            f"{run_dir / 'logs' / 'rank0.log'} before it is started again"
        )
    if checkpoint is None:
        return (
            "no checkpoint was saved; start again with: moe-megatron train --config "
            f"{run_dir / CONFIG_FILE}"
        )
    return f"go on from step {checkpoint} with: moe-megatron train --resume {run_dir}"
