"""One account of a run's time, from its launch to its end: what was kept, and what was lost why.

The rows add up to the wall time exactly, as what no row explains is a row of its own, `other`:

    goodput = kept steps / wall time
    ETTR    = 1 - lost time / wall time   (effective training time ratio)

Evaluation and `other` (logging, telemetry, the end of a process) are neither kept nor lost. It
computes, and reads no files.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from moe_megatron.telemetry.uptime.attempts import Attempt, Attempts, RolledBack
from moe_megatron.telemetry.uptime.steps import StepTimes

LOST = {
    "startup": "from the launch of the ranks to the first step, without loading",
    "load": "loading checkpoints",
    "warmup": "what first steps took longer than the median step: compiling, filling caches",
    "save": "the time the training loop waited for checkpoints",
    "recomputed": "steps that were made, or half made, and lost by a kill or a roll back",
    "skipped": "steps that made no update",
    "hang": "from the last step on record to the end of an attempt that hung",
    "waiting": "between the end of an attempt and the start of the next: restart, queue",
}
"""The kinds of lost time, with what each is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Where the time of a run went, in seconds."""

    started: float
    """When the run was launched, in seconds since 1970."""
    wall: float
    """From then to the end, or to now."""
    attempts: int
    """How often the ranks were started."""
    kept: float
    """Steps that were kept and made an update, without the warm-up of first steps."""
    kept_steps: int
    lost_steps: int
    """Steps on record that were lost."""
    evaluation: float
    lost: Mapping[str, float]
    """By the kinds of `LOST`."""
    other: float
    """What no other row explains."""

    @property
    def goodput(self) -> float:
        """Kept steps over wall time."""
        return self.kept / self.wall if self.wall > 0 else 0.0

    @property
    def ettr(self) -> float:
        """1 - lost time over wall time."""
        return 1 - sum(self.lost.values()) / self.wall if self.wall > 0 else 0.0

    def rows(self) -> dict[str, float]:
        """All rows; they add up to `wall`."""
        return {"kept": self.kept, "evaluation": self.evaluation, **self.lost, "other": self.other}


def account(
    attempts: Attempts, steps: StepTimes, until: float, *, runs: bool, recorded_at: float
) -> Account | None:
    """The account of a run; None if its journal knows no attempt.

    Args:
        attempts: From its journal.
        steps: From its metrics.jsonl, from the first attempt's `resumed_step` on.
        until: When the run ended, or now: seconds since 1970.
        runs: Whether the last attempt is still at work, so that nothing of it is lost yet.
        recorded_at: When the last step was recorded.
    """
    listed = attempts.list
    if not listed:
        return None
    started = listed[0].started
    ends = [_end(a, following, until) for a, following in _pairs(listed)]
    lost = dict.fromkeys(LOST, 0.0)
    counted: list[Attempt | RolledBack] = _counted(listed)
    counted += (back for a in listed for back in a.rollbacks)
    lost["recomputed"] = steps.lost_seconds + sum(it.lost_seconds for it in counted)
    lost["skipped"] = sum(steps.skipped.values())
    kept, died = steps.kept_seconds, 0
    for place, (attempt, following) in enumerate(_pairs(listed)):
        end, at_work = ends[place], runs and following is None
        lost["startup"] += max(0.0, (attempt.loop_at or end) - attempt.started
                               - attempt.load_seconds)  # fmt: skip
        lost["load"] += attempt.load_seconds + sum(back.seconds for back in attempt.rollbacks)
        lost["save"] += sum(seconds for _, seconds in attempt.saves)
        if following is not None:
            lost["waiting"] += max(0.0, following.started - end)
        else:
            lost["waiting"] += max(0.0, until - end)
        excess = max(0.0, attempt.first_step_seconds - steps.typical)
        kept = _take_warmup(excess, attempt, listed[place + 1 :], steps, lost, kept)
        if attempt.loop_at is not None and not attempt.in_order and not at_work:
            died += 1
            recorded = following.reached_at if following is not None else recorded_at
            _lose_tail(attempt, end, recorded, lost)
    evaluation = sum(attempt.evaluation_seconds for attempt in listed)
    wall = until - started
    other = wall - kept - evaluation - sum(lost.values())
    # A step is recorded when the next one ends: a kill loses one more than is on record.
    unrecorded = min(died * steps.typical, max(0.0, other))
    lost["recomputed"] += unrecorded
    return Account(
        started=started,
        wall=wall,
        attempts=len(listed),
        kept=kept,
        kept_steps=steps.kept,
        lost_steps=steps.lost_steps + sum(it.lost_steps for it in counted),
        evaluation=evaluation,
        lost=lost,
        other=other - unrecorded,
    )


def _pairs(listed: list[Attempt]) -> list[tuple[Attempt, Attempt | None]]:
    return list(zip(listed, [*listed[1:], None], strict=True))


def _end(attempt: Attempt, following: Attempt | None, until: float) -> float:
    """When an attempt ended; without a word about it, at its last sign of life."""
    if attempt.end is not None:
        return attempt.end
    if following is None:
        return until
    signs = [attempt.last_sign]
    # The next attempt may have mended the file before it noted when that was written.
    if following.reached_at is not None and following.reached_at < following.started:
        signs.append(following.reached_at)
    return min(following.started, max(signs))


def _counted(listed: list[Attempt]) -> list[Attempt | RolledBack]:
    """The attempts whose lost steps count.

    One that died before it rewound the record leaves the same steps to the next one.
    """
    return [
        attempt
        for attempt, following in _pairs(listed)
        if following is None
        or attempt.first_step is not None
        or (following.reached or 0) <= attempt.resumed_step
    ]


def _take_warmup(
    excess: float,
    attempt: Attempt,
    later: list[Attempt],
    steps: StepTimes,
    lost: dict[str, float],
    kept: float,
) -> float:
    """Move the excess of a first step to the row `warmup`, from that of its step; returns kept."""
    if attempt.first_step is None or not excess:
        return kept
    lost["warmup"] += excess
    on_record = steps.last is not None and attempt.first_step <= steps.last
    taken_back = [a for a in later if a.begun and a.resumed_step < attempt.first_step
                  and (a.reached is not None or a.first_step is not None)]  # fmt: skip
    rolled_back = (b.to_step < attempt.first_step for a in (attempt, *later) for b in a.rollbacks)
    if any(rolled_back):
        lost["recomputed"] -= min(excess, lost["recomputed"])
    elif taken_back:
        if any((a.reached or 0) >= attempt.first_step for a in taken_back):
            lost["recomputed"] -= min(excess, lost["recomputed"])
    elif attempt.first_step in steps.skipped:
        lost["skipped"] -= excess
    elif on_record:
        return kept - excess
    return kept


def _lose_tail(
    attempt: Attempt, end: float, recorded: float | None, lost: dict[str, float]
) -> None:
    """Count what an attempt did after its last record, before it died."""
    if attempt.saving_since is not None:
        lost["save"] += max(0.0, end - attempt.saving_since)
        end = attempt.saving_since
    last = max(recorded or attempt.last_sign, attempt.first_step_at or 0.0)
    lost["hang" if attempt.hung else "recomputed"] += max(0.0, end - last)
