"""Builds PromQL queries of the exported metrics; every name is looked up in the catalog.

Dashboards show one run at a time, but for that of the fleet. Each query aggregates over the
identity labels, so that a run that resumes on another machine stays one line. It does not know
panels.
"""

from moe_megatron.telemetry.catalog import find_metric
from moe_megatron.telemetry.exporter.discovery import JOB

RUN = f'job="{JOB}",cluster="$cluster",run="$run"'
"""Matchers that select the run that a dashboard shows."""

RUNS = f'job="{JOB}",cluster="$cluster",run=~"$runs"'
"""Matchers that select the runs that a dashboard compares."""

_WINDOW = "$__rate_interval"


def select(name: str, matchers: str = RUN) -> str:
    """The series of a metric; give a histogram's name with `_bucket`, `_sum` or `_count`."""
    families = (name.removesuffix(part) for part in ("", "_bucket", "_sum", "_count"))
    assert any(map(find_metric, families)), f"{name} is not in telemetry/catalog.py"
    return f"{name}{{{matchers}}}"


def latest(name: str, *by: str, matchers: str = RUN) -> str:
    """The newest value of a gauge, for each value of the labels `by`."""
    return _aggregate("max", by, select(name, matchers))


def last(name: str, *by: str, matchers: str = RUN) -> str:
    """The newest value of a counter that goes on when a run is resumed."""
    return _aggregate("max", by, f"last_over_time({select(name, matchers)}[{_WINDOW}])")


def rate(name: str, *by: str, matchers: str = RUN) -> str:
    """Increase of a counter per second."""
    return _aggregate("sum", by, f"rate({select(name, matchers)}[{_WINDOW}])")


def increase(name: str, *by: str, window: str = _WINDOW, matchers: str = RUN) -> str:
    """Increase of a counter over a window."""
    return _aggregate("sum", by, f"increase({select(name, matchers)}[{window}])")


def quantile(fraction: float, histogram: str) -> str:
    """A quantile of the values in a histogram."""
    return f"histogram_quantile({fraction}, {rate(histogram + '_bucket', 'le')})"


def ratio(part: str, whole: str, *on: str) -> str:
    """Part / whole, matched on the labels `on`; no result where the whole is zero."""
    matching = f" on ({', '.join(on)})" if on else ""
    return f"{part} /{matching} ({whole} > 0)"


def in_order(series: str, label: str) -> str:
    """The series in the order of a number below 100 in a label: Prometheus puts 10 before 2.

    Another label, whose name comes before, sets those with one digit apart from the others.
    """
    assert label > "digits"
    return f'label_replace({series}, "digits", "1", "{label}", ".")'


def chosen(series: str, label: str, choice: str) -> str:
    """Those lines of `series` whose label the choice names, for the whole time range.

    `topk` alone chooses again at every point in time, so that it draws fragments of many lines.

    Args:
        series: What is drawn.
        label: What distinguishes the lines.
        choice: `topk` or `bottomk` of `range_end` or `range_increase`.
    """
    return f"({series}\nand on ({label}) {choice})"


def range_end(name: str, *by: str) -> str:
    """The newest value of a gauge in the time range."""
    return _aggregate("max", by, f"last_over_time({select(name)}[$__range] @ end())")


def range_increase(name: str, *by: str, matchers: str = RUN) -> str:
    """The increase of a counter over the time range."""
    return _aggregate("sum", by, f"increase({select(name, matchers)}[$__range] @ end())")


def youngest(name: str, *by: str, matchers: str = RUN) -> str:
    """The value of a gauge of an age; of a run that has just moved, that of its newest process."""
    return _aggregate("min", by, select(name, matchers))


def _aggregate(how: str, by: tuple[str, ...], inner: str) -> str:
    return f"{how} by ({', '.join(by)}) ({inner})" if by else f"{how}({inner})"
