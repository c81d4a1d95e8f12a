"""Shows what became of runs, for people: one column a run, and its attempts below."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from rich.console import Console
from rich.table import Table
from rich.text import Text

from moe_megatron.run.uptime import Uptime
from moe_megatron.telemetry.uptime.account import LOST
from moe_megatron.telemetry.uptime.attempts import Attempt, what_happened

_STYLES = {"running": "green", "done": "green", "stopped": "yellow", "died": "red",
           "vanished": "red"}  # fmt: skip
_NAMES = {
    "kept": "kept steps",
    "startup": "start-up",
    "load": "load",
    "warmup": "warm-up",
    "save": "save",
    "recomputed": "recomputed",
    "skipped": "skipped steps",
    "hang": "hang",
    "waiting": "waiting",
    "evaluation": "evaluation",
    "other": "other",
}
_SHOWN = 8
"""How many attempts and notes of a run are shown, the newest."""


def show(runs: Sequence[Uptime], console: Console) -> None:
    """Print the runs."""
    console.print(_accounts(runs))
    for run in runs:
        console.print()
        console.print(f"{run.run_dir}", style="bold", markup=False, highlight=False, soft_wrap=True)
        console.print(_attempts(run.attempts.list))
        for event in run.attempts.notes[-_SHOWN:]:
            _line(console, f"{_clock(event.time)}  {what_happened(event)}")
        _line(console, f"{run.state}: {run.why}" if run.why else run.state)
        if run.checkpoint is not None:
            _line(console, f"last checkpoint: step {run.checkpoint}")
        if run.advice:
            _line(console, run.advice)


def _line(console: Console, text: str) -> None:
    # Not wrapped: paths and commands are copied from here.
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _accounts(runs: Sequence[Uptime]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    for run in runs:
        table.add_column(Text(run.run_dir.name), justify="right")
    table.add_row("state", *(Text(run.state, style=_STYLES[run.state]) for run in runs))
    table.add_row("step", *(f"{run.step}/{run.total_steps or '?'}" for run in runs))
    table.add_row("attempts", *(str(len(run.attempts.list)) for run in runs))
    table.add_row("goodput", *(f"{run.account.goodput:.1%}" for run in runs), style="bold")
    table.add_row("ETTR", *(f"{run.account.ettr:.1%}" for run in runs))
    table.add_section()
    for row in ("kept", *LOST, "evaluation", "other"):
        table.add_row(_NAMES[row], *(_part(run, row) for run in runs))
    table.add_row("wall time", *(f"{_span(run.account.wall)}  100.0%" for run in runs))
    return table


def _part(run: Uptime, row: str) -> str:
    seconds = run.account.rows()[row]
    share = seconds / run.account.wall if run.account.wall else 0.0
    return f"{_span(seconds)}  {share:6.1%}"


def _attempts(attempts: Sequence[Attempt]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("attempt", "started", "host", "processes", "steps", "end"):
        table.add_column(heading)
    later = [*attempts[1:], None]
    rows = list(zip(range(1, len(attempts) + 1), attempts, later, strict=True))
    for place, attempt, following in rows[-_SHOWN:]:
        table.add_row(
            str(place),
            _clock(attempt.started),
            Text(attempt.host),
            str(attempt.world_size or "?"),
            _steps(attempt, following),
            Text(attempt.end_reason or ("no word" if following else "")),
        )
    return table


def _steps(attempt: Attempt, following: Attempt | None) -> str:
    if attempt.first_step is None:
        return "none"
    known = [attempt.first_step, attempt.trained or 0, *(step for step, _ in attempt.saves)]
    if following is not None and following.reached is not None:
        known.append(following.reached)
    return f"{attempt.first_step} to {max(known)}"


def _clock(moment: float) -> str:
    return datetime.fromtimestamp(moment).strftime("%Y-%m-%d %H:%M:%S")


def _span(seconds: float) -> str:
    if abs(seconds) < 3600:
        return f"{seconds:.1f} s"
    return str(timedelta(seconds=round(seconds)))


def kinds_of_lost_time() -> Iterable[str]:
    """A line about each kind of lost time, for the help."""
    return (f"  {_NAMES[kind]:<14} {meaning}" for kind, meaning in LOST.items())
