"""The attempts of a run, from its journal: when each began, made its first step, and ended.

An attempt is one start of the ranks. Events of the launcher may be missing, as where another
program started the ranks, and so may those of ranks that were killed. It knows no metrics.jsonl.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from moe_megatron.errors import AGAIN, NO_PROGRESS
from moe_megatron.telemetry.journal import Event


@dataclass(frozen=True, slots=True, kw_only=True)
class RolledBack:
    """A return to a checkpoint within an attempt."""

    to_step: int
    seconds: float
    """Time to load the checkpoint."""
    lost_steps: int
    """Steps on record that it took back."""
    lost_seconds: float
    """Time of these steps."""


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One start of the ranks. Times are seconds since 1970, durations seconds."""

    started: float
    """When its launcher started it, or its first process."""
    last_sign: float
    """Its newest event."""
    number: int | None = None
    """From 1; None if its ranks never got as far as building the model."""
    host: str = ""
    pid: int | None = None
    """The first rank's process on that host."""
    process_started: float | None = None
    world_size: int | None = None
    resumed_step: int = 0
    """The step it went on from."""
    load_seconds: float = 0.0
    reached: int | None = None
    """The last step on record when it began, of the attempts before it."""
    reached_at: float | None = None
    """When that was recorded."""
    lost_steps: int = 0
    """Steps on record that it took back when it began."""
    lost_seconds: float = 0.0
    rollbacks: list[RolledBack] = field(default_factory=list)
    first_step: int | None = None
    first_step_at: float | None = None
    first_step_seconds: float = 0.0
    saves: list[tuple[int, float]] = field(default_factory=list)
    """Step of each checkpoint, and how long the loop waited for it."""
    saving_since: float | None = None
    """When it began to write a checkpoint that is not complete."""
    evaluation_seconds: float = 0.0
    hung: bool = False
    """Whether a hang was noticed, and no step ended after it that was noted."""
    trained: int | None = None
    """Its last step, if it left the training loop in order."""
    interrupted: bool = False
    """Whether a signal asked it to leave."""
    died_at: float | None = None
    """When the first of its processes died."""
    ended_at: float | None = None
    code: int | None = None
    """Exit code; see `moe_megatron.errors`."""
    reason: str = ""
    """Why it ended."""

    @property
    def begun(self) -> bool:
        """Whether its ranks got as far as building the model."""
        return self.number is not None

    @property
    def loop_at(self) -> float | None:
        """When the training loop began its first step."""
        return None if self.first_step_at is None else self.first_step_at - self.first_step_seconds

    @property
    def end(self) -> float | None:
        """When it ended, as far as the journal knows."""
        return self.ended_at if self.died_at is None else self.died_at

    @property
    def in_order(self) -> bool:
        """Whether it ended as it was meant to: with the last step, or asked by a signal."""
        return self.trained is not None and self.died_at is None

    @property
    def end_reason(self) -> str:
        """How it ended, in words; "" where the journal does not say."""
        if self.reason:
            return self.reason
        if self.trained is not None:
            return f"stopped by a signal after step {self.trained}" if self.interrupted else "done"
        named = {0: "done", AGAIN: "stopped, to go on later", NO_PROGRESS: "made no progress"}
        return "" if self.code is None else named.get(self.code, f"exit code {self.code}")


class Attempts:
    """Reads events, in order, into attempts; more may be read later."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.list: list[Attempt] = []
        """Oldest first."""
        self.checkpoints: dict[int, float] = {}
        """Checkpoints that were saved and not removed or set aside: step and time."""
        self.notes: list[Event] = []
        """What else happened: sinks that failed, experts that were masked, and so on."""
        self._announced = False
        """Whether the newest event announces an attempt."""
        self.read(events)

    def read(self, events: Iterable[Event]) -> None:
        """Read further events."""
        for event in events:
            if event.kind in _STARTS:
                # A launcher that starts the ranks again says both: that it will, and that it has.
                if not (self._announced and event.kind == "launched"):
                    self.list.append(Attempt(started=event.time, last_sign=event.time))
                self._fill(event)
            elif event.kind == "attempt":
                self._begin(event)
            elif event.kind in _FILLS:
                self._fill(event)
            self._announced = event.kind == "restarting"
            self._note(event)

    def _begin(self, event: Event) -> None:
        if not self.list or self.list[-1].begun:
            started = min(event.time, _number(event, "started", event.time))
            if self.list:
                before = self.list[-1]
                started = max(started, before.end or before.last_sign)
            self.list.append(Attempt(started=started, last_sign=event.time))
        self._fill(event)

    def _fill(self, event: Event) -> None:
        if self.list:
            attempt = self.list[-1]
            attempt.last_sign = max(attempt.last_sign, event.time)
            _FILLS[event.kind](attempt, event)

    def _note(self, event: Event) -> None:
        step = event.fields.get("step")
        if event.kind == "saved" and isinstance(step, int):
            self.checkpoints[step] = event.time
        elif event.kind in ("removed", "set_aside") and isinstance(step, int):
            self.checkpoints.pop(step, None)
        if event.kind in _NOTES:
            self.notes.append(event)

    @property
    def newest_checkpoint(self) -> int | None:
        """Step of the newest checkpoint that the journal knows."""
        return max(self.checkpoints, default=None)


def _number(event: Event, name: str, default: float = 0.0) -> float:
    value = event.fields.get(name)
    return float(value) if isinstance(value, int | float) else default


def _whole(event: Event, name: str) -> int | None:
    value = event.fields.get(name)
    return value if isinstance(value, int) else None


def _text(event: Event, name: str) -> str:
    return str(event.fields.get(name) or "")


def _launched(attempt: Attempt, event: Event) -> None:
    attempt.host = _text(event, "host")


def _attempt(attempt: Attempt, event: Event) -> None:
    attempt.number = _whole(event, "attempt") or 0
    attempt.host, attempt.pid = _text(event, "host"), _whole(event, "pid")
    attempt.process_started = _number(event, "started", event.time)
    attempt.world_size = _whole(event, "world_size")


def _resumed(attempt: Attempt, event: Event) -> None:
    attempt.resumed_step = _whole(event, "step") or 0
    attempt.load_seconds = _number(event, "seconds")
    attempt.reached, attempt.lost_steps = _whole(event, "reached"), _whole(event, "lost_steps") or 0
    attempt.lost_seconds = _number(event, "lost_seconds")
    attempt.reached_at = _number(event, "reached_at") or None


def _first_step(attempt: Attempt, event: Event) -> None:
    attempt.first_step, attempt.first_step_at = _whole(event, "step"), event.time
    attempt.first_step_seconds = _number(event, "seconds")


def _rolled_back(attempt: Attempt, event: Event) -> None:
    attempt.saving_since, attempt.hung = None, False
    attempt.rollbacks.append(
        RolledBack(
            to_step=_whole(event, "to_step") or 0,
            seconds=_number(event, "seconds"),
            lost_steps=_whole(event, "lost_steps") or 0,
            lost_seconds=_number(event, "lost_seconds"),
        )
    )


def _saving(attempt: Attempt, event: Event) -> None:
    attempt.saving_since = event.time


def _saved(attempt: Attempt, event: Event) -> None:
    attempt.saving_since, attempt.hung = None, False
    attempt.saves.append((_whole(event, "step") or 0, _number(event, "seconds")))


def _evaluated(attempt: Attempt, event: Event) -> None:
    attempt.evaluation_seconds += _number(event, "seconds")
    attempt.hung = False


def _hang(attempt: Attempt, event: Event) -> None:
    attempt.hung = True


def _trained(attempt: Attempt, event: Event) -> None:
    attempt.trained, attempt.hung = _whole(event, "step"), False
    attempt.interrupted = bool(event.fields.get("interrupted"))


def _rank_died(attempt: Attempt, event: Event) -> None:
    if attempt.died_at is None:
        attempt.died_at = event.time
        reason = _text(event, "reason") or "died"
        rank = event.fields.get("rank")
        named = rank is None or f"rank {rank}" in reason
        attempt.reason = reason if named else f"rank {rank}: {reason}"


def _ended(attempt: Attempt, event: Event) -> None:
    attempt.ended_at, attempt.code = event.time, _whole(event, "code")
    attempt.reason = attempt.reason or _text(event, "reason")


_STARTS = ("launched", "restarting")
_FILLS: dict[str, Callable[[Attempt, Event], None]] = {
    "launched": _launched,
    "restarting": _launched,
    "attempt": _attempt,
    "resumed": _resumed,
    "first_step": _first_step,
    "rolled_back": _rolled_back,
    "saving": _saving,
    "saved": _saved,
    "save_failed": _saved,
    "evaluated": _evaluated,
    "hang": _hang,
    "trained": _trained,
    "rank_died": _rank_died,
    "ended": _ended,
}
_NOTES = frozenset(
    {"set_aside", "save_failed", "skipped", "rolled_back", "masked", "unmasked", "hang",
     "sink_failed", "sink_restored", "stopping", "asked"}
)  # fmt: skip


def what_happened(event: Event) -> str:
    """A note in words."""
    fields: dict[str, Any] = dict(event.fields)
    step = fields.pop("step", None)
    at = "" if step is None else f" at step {step}"
    rest = ", ".join(f"{name} {value}" for name, value in fields.items() if name != "reason")
    words = f"{event.kind.replace('_', ' ')}{at}" + (f" ({rest})" if rest else "")
    return f"{words}: {fields['reason']}" if fields.get("reason") else words
