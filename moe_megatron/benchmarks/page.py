"""The page of a bench: one HTML file that loads nothing, with table, intervals and curves."""

from collections.abc import Iterable, Sequence
from html import escape
from statistics import fmean

from moe_megatron.benchmarks.case import REFERENCE
from moe_megatron.benchmarks.interval_chart import Estimate, interval_chart
from moe_megatron.benchmarks.line_chart import Series, line_chart
from moe_megatron.benchmarks.page_style import render_page
from moe_megatron.benchmarks.setup import Setup
from moe_megatron.benchmarks.table_rows import Row, columns
from moe_megatron.benchmarks.tables import facts, meanings, notes, shown_rows, title

_FIRST = 0.25
"""Share of a training that curves leave out, which would hide all else."""


def render(
    setup: Setup, rows: Sequence[Row], command: str, failures: Sequence[str], *, of_experts: bool
) -> str:
    """The page as an HTML document.

    Args:
        setup: Of all runs.
        rows: What was found.
        command: What made it.
        failures: What could not be trained.
        of_experts: Whether numbers of experts were compared, rather than routers.
    """
    ordered = shown_rows(rows, of_experts)
    heading = title(of_experts)
    body = [
        _header(heading, setup, rows, command, of_experts),
        _differences(ordered, of_experts),
        _table(setup, ordered, of_experts),
        *(f'<p class="bad">Failed: {escape(text)}</p>' for text in failures),
        _curves(ordered, of_experts),
        "<footer>Written by moe_megatron from the files of the bench.</footer>",
    ]
    return render_page(heading, "\n".join(body))


def _label(row: Row, of_experts: bool) -> str:
    return f"{row.case.num_experts} experts" if of_experts else row.case.name


def _header(heading: str, setup: Setup, rows: Sequence[Row], command: str, of_experts: bool) -> str:
    counts = {it: sum(row.verdict == it for row in rows) for it in ("lower", "higher")}
    same = sum(row.verdict == "not distinguishable" for row in rows)
    than = "the first" if of_experts else REFERENCE
    boxes = [
        ("compared", str(len(rows)), f"{max((len(row.records) for row in rows), default=0)} seeds"),
        (f"loss lower than {than}", str(counts["lower"]), "interval below 0"),
        ("not distinguishable", str(same), "interval reaches over 0"),
        (f"loss higher than {than}", str(counts["higher"]), "interval above 0"),
    ]
    made = _listing(facts(setup, rows, command).items())
    first, *rest = [it for it in notes(setup, rows, of_experts=of_experts) if it]
    terms = "".join(
        f"<div><dt>{escape(a)}</dt><dd>{escape(b)}<small>{escape(c)}</small></dd></div>"
        for a, b, c in boxes
    )
    return (
        f'<header><h1>{heading}</h1><p class="lead">{escape(first)}</p>'
        f'<dl class="facts">{terms}</dl></header>'
        f"<section><h2>How to read this</h2>{''.join(f'<p>{escape(it)}</p>' for it in rest)}"
        "<details><summary>How it was made</summary>"
        f'<div class="card scroll"><table><tbody>{made}</tbody></table></div></details></section>'
    )


def _listing(pairs: Iterable[tuple[str, str]]) -> str:
    """Rows of a table of names and texts."""
    return "".join(
        f'<tr><th class="list" scope="row">{escape(name)}</th>'
        f'<td class="list">{escape(text.strip("`"))}</td></tr>'
        for name, text in pairs
    )


def _differences(rows: Sequence[Row], of_experts: bool) -> str:
    compared = [row for row in rows if row.difference is not None]
    if not compared:
        return ""
    than = _label(next(row for row in rows if row.verdict == "reference"), of_experts)
    estimates = [
        Estimate(
            label=_label(row, of_experts),
            mean=row.difference.mean,
            low=row.difference.low,
            high=row.difference.high,
            clear=row.verdict in ("lower", "higher"),
        )
        for row in compared
        if row.difference is not None
    ]
    chart = interval_chart(
        f"Held-out loss, less that of {than}",
        estimates,
        axis="nats per token; left is better",
        note="Mean over seeds and its 95 % interval. Grey: not distinguishable from the rule at 0.",
    )
    return f"<section><h2>Differences</h2><p>Seed by seed.</p>{chart}</section>"


def _table(setup: Setup, rows: Sequence[Row], of_experts: bool) -> str:
    chosen = columns(setup, of_experts=of_experts)
    head = "".join(
        f'<th scope="col" title="{escape(it.meaning)}">{escape(it.title)}</th>' for it in chosen
    )
    lines = []
    for row in rows:
        first, *cells = (escape(it.cell(row)).replace("+-", "&plusmn;") for it in chosen)
        lines.append(
            f'<tr><th scope="row">{first}</th>{"".join(f"<td>{it}</td>" for it in cells)}</tr>'
        )
    terms = _listing(meanings(setup, of_experts))
    return (
        "<section><h2>Table</h2><p>Means over seeds. Routing is that of the last quarter of the "
        'training, means over steps and layers.</p><div class="card scroll" tabindex="0">'
        f'<table class="dense"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody>'
        "</table></div>"
        "<details><summary>What the columns are</summary>"
        f'<div class="card scroll"><table><tbody>{terms}</tbody></table></div></details></section>'
    )


def _curves(rows: Sequence[Row], of_experts: bool) -> str:
    reference = next(row for row in rows if row.verdict == "reference")
    beside = _series(reference, of_experts)
    charts = [
        line_chart(
            _label(row, of_experts),
            [_series(row, of_experts), *([] if row is reference else [beside])],
        )
        for row in rows
    ]
    return (
        "<section><h2>Loss curves</h2><p>Validation loss during training, nats per token: mean "
        "over seeds, and a band from the lowest to the highest. The first quarter of the training "
        f'is left out.</p><div class="charts">{"".join(charts)}</div></section>'
    )


def _series(row: Row, of_experts: bool) -> Series:
    curves = [dict(it.curve) for it in row.records.values()]
    steps = sorted(set.intersection(*map(set, curves)))
    spacing = steps[1] - steps[0] if len(steps) > 1 else 0
    # The evaluation at the end of a run may come soon after another, on other batches.
    even = [step for step in steps if step % spacing == 0] if spacing else steps
    shown = [step for step in even if step > _FIRST * steps[-1]] or steps
    values = [[curve[step] for curve in curves] for step in shown]
    several = len(curves) > 1
    return Series(
        name=_label(row, of_experts),
        x=shown,
        y=[fmean(it) for it in values],
        low=[min(it) for it in values] if several else (),
        high=[max(it) for it in values] if several else (),
    )
