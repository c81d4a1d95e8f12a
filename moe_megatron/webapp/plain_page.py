"""What is served where the page is not built: the runs, in HTML without style or script."""

from collections.abc import Iterable
from html import escape

from moe_megatron.webapp.run_facts import RunFacts

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>moe_megatron dashboard</title>
<h1>Runs</h1>
{table}
<p>The page of the dashboard is not built in this checkout: <code>make ui</code> builds it (it needs
Node). What it would show is at <a href="/api/runs">/api/runs</a>, and a run's report is written by
<code>moe-megatron report RUN_DIR</code>.</p>
</html>
"""


def plain_page(runs: Iterable[RunFacts]) -> str:
    """The page."""
    rows = [
        f'<tr><td><a href="/api/runs/{escape(run.id)}">{escape(run.name)}</a></td>'
        f"<td>{run.state}</td><td>{run.last_step:,}</td>"
        f"<td>{'' if run.loss is None else f'{run.loss:.4f}'}</td>"
        f"<td>{escape(run.problem or '')}</td></tr>"
        for run in runs
    ]
    if not rows:
        return _PAGE.format(
            table="<p>There is no run here yet; <code>make train</code> makes one.</p>"
        )
    head = "<tr><th>run</th><th>state</th><th>step</th><th>loss</th><th></th></tr>"
    return _PAGE.format(table=f"<table>{head}{''.join(rows)}</table>")
