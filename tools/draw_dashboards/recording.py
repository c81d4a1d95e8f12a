"""What Grafana would ask Prometheus for a dashboard: every panel's answers, as plain values.

It fills in the dashboard's variables and chooses step and window as Grafana does. It draws nothing.
"""

import re
from dataclasses import dataclass
from typing import Any

from moe_megatron.dashboards.check import all_panels
from moe_megatron.dashboards.panels import Json
from moe_megatron.testing.prometheus_api import PrometheusApi

_MOST_POINTS = 600
"""Points in a line: about the pixels of a panel of half the page, as Grafana asks for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """A run in a Prometheus, from one time to another, in seconds.

    Attributes:
        prometheus: where it is.
        run: value of the label `run`.
        layer: the layer that the dashboard of one layer shows.
        start: when the time range begins.
        end: when it ends.
        scrape: seconds between scrapes.
        caption: what is said of it in the picture.
    """

    prometheus: PrometheusApi
    run: str
    layer: str
    start: float
    end: float
    scrape: float
    caption: str

    @property
    def step(self) -> float:
        """Seconds from one point of a line to the next."""
        scrapes = -(-(self.end - self.start) // (_MOST_POINTS * self.scrape))
        return max(1.0, scrapes) * self.scrape

    @property
    def variables(self) -> dict[str, str]:
        """Values of Grafana's variables."""
        return {
            "__rate_interval": f"{max(self.step + self.scrape, 4 * self.scrape):g}s",
            "__range": f"{self.end - self.start:.0f}s",
            "cluster": "local",
            "run": self.run,
            "runs": ".+",
            "layer": self.layer,
            "price": "1",
        }


def board(dashboard: Json, recorded: Recorded) -> Json:
    """A dashboard with the answers to its queries, as `src/main.tsx` reads it."""
    step = recorded.step
    start = recorded.start - recorded.start % step
    end = recorded.end - recorded.end % step
    times = (start, end, step)
    marks = [mark for it in dashboard["annotations"]["list"] if it["enable"]
             for mark in _marks(it, recorded, times)]  # fmt: skip
    return {
        "title": dashboard["title"],
        "caption": recorded.caption,
        "from": round(start * 1000),
        "to": round(end * 1000),
        "interval": round(step * 1000),
        "variables": recorded.variables,
        "panels": [_panel(it, recorded, times) for it in all_panels(dashboard)],
        "marks": marks,
    }


def _panel(panel: Json, recorded: Recorded, times: tuple[float, float, float]) -> Json:
    targets = [
        {**target, "series": _answer(target, recorded, times)}
        for target in panel.get("targets", ())
    ]
    return {**panel, "targets": targets}


def _answer(target: Json, recorded: Recorded, times: tuple[float, float, float]) -> list[Any]:
    expr = _filled_in(target["expr"], recorded)
    if target["instant"]:
        series = recorded.prometheus.query(expr, at=times[1])
        return [{"metric": it["metric"], "values": [it["value"]]} for it in series]
    return recorded.prometheus.query_range(expr, *times)


def _marks(annotation: Json, recorded: Recorded, times: tuple[float, float, float]) -> list[Json]:
    """A line at each time, in milliseconds, that the annotation's query has as a value."""
    series = recorded.prometheus.query_range(_filled_in(annotation["expr"], recorded), *times)
    found = {float(value) for it in series for _, value in it["values"]}
    return [
        {"name": annotation["name"], "color": annotation["iconColor"], "time": time}
        for time in sorted(found)
        if times[0] * 1000 <= time <= times[1] * 1000
    ]


def _filled_in(expr: str, recorded: Recorded) -> str:
    return re.sub(r"\$(\w+)", lambda found: recorded.variables[found[1]], expr)
