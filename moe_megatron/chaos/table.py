"""The report of a campaign, in Markdown: what was done, and what was survived."""

from collections.abc import Sequence
from statistics import median

from moe_megatron.chaos.campaign import Hit
from moe_megatron.chaos.harm import Harm


def campaign_table(harms: Sequence[Harm], hits: Sequence[Hit], failures: Sequence[str]) -> str:
    """The report.

    Args:
        harms: What could be done.
        hits: What was done.
        failures: What went wrong; see `verdict.failures`.
    """
    lines = [
        "| harm | what it is | hits | survived | restarts "
        "| median s to next step | longest start, s | most steps made again |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [_row(harm, [hit for hit in hits if hit.harm == harm.name]) for harm in harms]
    lines += ["", f"{len(hits)} hits, {len(failures)} failures."]
    lines += [f"- {failure}" for failure in failures]
    return "\n".join(lines) + "\n"


def hits_table(hits: Sequence[Hit]) -> str:
    """Every hit, one a line."""
    lines = [
        "| # | step | harm | what | outcome | s | made again |",
        "|--:|--:|---|---|---|--:|--:|",
    ]
    for hit in hits:
        outcome = f"{hit.outcome}: {hit.failure}" if hit.failure else hit.outcome
        cells = (hit.number, hit.step, hit.harm, hit.what, outcome, _seconds(hit.seconds))
        lines.append(f"| {' | '.join(map(str, cells))} | {_count(hit.lost_steps)} |")
    return "\n".join(lines) + "\n"


def _row(harm: Harm, hits: Sequence[Hit]) -> str:
    seconds = [hit.seconds for hit in hits if hit.seconds is not None]
    starts = [hit.start_seconds for hit in hits if hit.start_seconds is not None]
    lost = [hit.lost_steps for hit in hits if hit.lost_steps is not None]
    cells = (
        harm.name,
        harm.meaning,
        len(hits),
        sum(hit.failure is None for hit in hits),
        sum("start" in hit.outcome for hit in hits),
        _seconds(median(seconds) if seconds else None),
        _seconds(max(starts, default=None)),
        _count(max(lost, default=None)),
    )
    return f"| {' | '.join(map(str, cells))} |"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _count(value: int | None) -> str:
    return "" if value is None else str(value)
