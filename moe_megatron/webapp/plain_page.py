"""What is shown where the page is not built or scripts are not allowed: HTML with neither.

The runs of a server, and the summary of a run in a report. It knows what `summary` answers, not how
that is found.
"""

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from moe_megatron.webapp.run_facts import RunFacts

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
{body}
</html>
"""
_RUNS = """<h1>Runs</h1>
{table}
<p>The page of the dashboard is not built in this checkout: <code>make ui</code> builds it (it needs
Node). What it would show is at <a href="/api/runs">/api/runs</a>, and a run's report is written by
<code>moe-megatron report RUN_DIR</code>.</p>"""
_NOT_BUILT = """<p>This is what a report says without its pictures, as the page that draws them is
not built in this checkout: <code>make ui</code> builds it (it needs Node), and
<code>moe-megatron report RUN_DIR</code> then writes the report again.</p>"""


def plain_page(runs: Iterable[RunFacts]) -> str:
    """The page of a server."""
    rows = [
        [
            f'<a href="/api/runs/{escape(run.id)}">{escape(run.name)}</a>',
            run.state,
            f"{run.last_step:,}",
            "" if run.loss is None else f"{run.loss:.4f}",
            escape(run.problem or ""),
        ]
        for run in runs
    ]
    table = "<p>There is no run here yet; <code>make train</code> makes one.</p>"
    if rows:
        table = _table(("run", "state", "step", "loss", ""), rows)
    return _PAGE.format(title="moe_megatron dashboard", body=_RUNS.format(table=table))


def plain_report(title: str, summaries: str) -> str:
    """A report without its pictures.

    Args:
        title: Names of its runs.
        summaries: What `plain_summary` says of each.
    """
    return _PAGE.format(title=f"{escape(title)} - MoE Lab", body=f"{summaries}\n{_NOT_BUILT}")


def plain_summary(name: str, summary: Mapping[str, Any], config: str) -> str:
    """The facts and tables of a run as HTML.

    Args:
        name: Of the run.
        summary: The answer to the call of this name.
        config: Text of its config.yaml; "" where there is none.
    """
    facts = [[escape(it[key]) for key in ("name", "value", "note")] for it in summary["facts"]]
    parts = [f"<h1>{escape(name)}</h1>", _table((), facts)]
    for it in summary["tables"]:
        rows = [[escape(cell) for cell in row] for row in it["rows"]]
        parts.append(f"<h2>{escape(it['title'])}</h2>\n<p>{escape(it['says'])}</p>")
        parts += [_table([escape(head) for head in it["columns"]], rows)] if rows else []
    if config:
        parts.append(f"<h2>Configuration</h2>\n<pre>{escape(config)}</pre>")
    return "\n".join(parts)


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of cells that are HTML already."""
    head = "".join(f'<th scope="col">{it}</th>' for it in heads)
    body = "".join(f"<tr>{''.join(f'<td>{it}</td>' for it in row)}</tr>\n" for row in rows)
    return f"<table>{f'<tr>{head}</tr>' if head else ''}\n{body}</table>"
