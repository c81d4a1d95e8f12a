"""A dashboard: variables, links, and panels that flow into the rows of a grid.

It knows what all dashboards have in common, not what any of them shows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from moe_megatron.dashboards.panels import DATASOURCE, Json, Panel
from moe_megatron.dashboards.queries import RUN, RUNS, select
from moe_megatron.telemetry.exporter.discovery import JOB

COLUMNS = 24
TAG = "moe-megatron"
LAYER_DASHBOARD = "moe-experts"

_SCHEMA_VERSION = 39
"""Schema version of Grafana 10.4, which newer versions also read."""


@dataclass(frozen=True, slots=True)
class Section:
    """Panels under a heading."""

    title: str
    panels: Sequence[Panel]
    collapsed: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Dashboard:
    """One dashboard.

    Attributes:
        uid: stable identifier, which links use.
        title: as listed in Grafana.
        description: one or two sentences.
        sections: from top to bottom.
        variables: in addition to data source and cluster, and to run where it shows a single one.
        scope: matchers that select what it shows.
    """

    uid: str
    title: str
    description: str
    sections: Sequence[Section]
    variables: Sequence[Json] = ()
    scope: str = RUN

    def to_json(self) -> Json:
        """The dashboard as Grafana reads it."""
        return {
            "annotations": {"list": _annotations(self.scope)},
            "description": self.description,
            "editable": False,
            "graphTooltip": 1,
            "links": [_links()],
            "panels": _place(self.sections),
            "refresh": "30s",
            "schemaVersion": _SCHEMA_VERSION,
            "tags": [TAG],
            "templating": {"list": [*_common_variables(self.scope), *self.variables]},
            "time": {"from": "now-1h", "to": "now"},
            "timezone": "browser",
            "title": self.title,
            "uid": self.uid,
            "version": 1,
        }


def query_variable(name: str, label: str, description: str, query: str, *, sort: int = 1) -> Json:
    """A variable that takes the values of a label; sort 1 is alphabetical, 3 numerical."""
    return {
        "datasource": DATASOURCE,
        "definition": query,
        "description": description,
        "includeAll": False,
        "label": label,
        "multi": False,
        "name": name,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": sort,
        "type": "query",
    }


def runs_variable() -> Json:
    """The variable that selects the runs of a dashboard that compares them."""
    runs = f'label_values(moe_run_info{{job="{JOB}",cluster="$cluster"}}, run)'
    several = {"allValue": ".+", "includeAll": True, "multi": True}
    return query_variable("runs", "Runs", "The runs to compare.", runs) | several


def layer_variable() -> Json:
    """The variable that selects the MoE layer of a dashboard."""
    return query_variable(
        "layer",
        "Layer",
        "MoE layer, numbered from 1 over all layers of the model.",
        f"label_values(moe_experts{{{RUN}}}, layer)",
        sort=3,
    )


def text_variable(name: str, label: str, description: str, value: str) -> Json:
    """A variable with a text box."""
    return {
        "description": description,
        "label": label,
        "name": name,
        "query": value,
        "type": "textbox",
    }


def run_link() -> Json:
    """A link from the name of a run in a table to the dashboard of that run."""
    variables = "${datasource:queryparam}&${cluster:queryparam}&var-run=${__value.raw}"
    url = f"/d/moe-overview?{variables}&${{__url_time_range}}"
    return {"title": "The dashboard of this run", "url": url}


def layer_link(layer: str = "${__field.labels.layer}") -> Json:
    """A link to the dashboard of a layer: of a series by its label, or of a value in a table."""
    variables = "${datasource:queryparam}&${cluster:queryparam}&${run:queryparam}"
    url = f"/d/{LAYER_DASHBOARD}?{variables}&var-layer={layer}"
    return {"title": "Experts of this layer", "url": f"{url}&${{__url_time_range}}"}


def _annotations(scope: str) -> list[Json]:
    """Lines across all charts where a run was started, and where it saved a checkpoint."""

    def at(name: str, timestamp: str, colour: str, *, enable: bool) -> Json:
        return {
            "datasource": DATASOURCE,
            "enable": enable,
            "expr": f"max by (run) ({select(timestamp, scope)}) * 1000",
            "iconColor": colour,
            "name": name,
            "step": "60s",
            "textFormat": "{{run}}",
            "titleFormat": name,
            # The value is the time in milliseconds; each value makes one line.
            "useValueForTime": "on",
        }

    one = scope != RUNS
    return [
        at("Start", "moe_run_start_timestamp_seconds", "orange", enable=True),
        at("Checkpoint", "moe_checkpoint_last_success_timestamp_seconds", "green", enable=one),
    ]


def _common_variables(scope: str) -> list[Json]:
    variables = [
        {
            "description": "The Prometheus that scrapes the runs.",
            "label": "Data source",
            "name": "datasource",
            "query": "prometheus",
            "refresh": 1,
            "type": "datasource",
        },
        query_variable(
            "cluster",
            "Cluster",
            "Value of telemetry.cluster of the run.",
            f'label_values(moe_run_info{{job="{JOB}"}}, cluster)',
        ),
        query_variable(
            "run",
            "Run",
            "Name of the run's folder.",
            f'label_values(moe_run_info{{job="{JOB}",cluster="$cluster"}}, run)',
        ),
    ]
    return variables[:-1] if scope == RUNS else variables


def _links() -> Json:
    return {
        "asDropdown": False,
        "icon": "dashboard",
        "includeVars": True,
        "keepTime": True,
        "tags": [TAG],
        "targetBlank": False,
        "title": "MoE dashboards",
        "type": "dashboards",
    }


def _place(sections: Sequence[Section]) -> list[Json]:
    placed: list[Json] = []
    number, y = 1, 0
    for section in sections:
        row: Json = {
            "collapsed": section.collapsed,
            "gridPos": {"h": 1, "w": COLUMNS, "x": 0, "y": y},
            "id": number,
            "panels": [],
            "title": section.title,
            "type": "row",
        }
        number, y = number + 1, y + 1
        panels, y = _flow(section.panels, number, y)
        number += len(panels)
        placed.append(row)
        # Grafana stores the panels of a collapsed row inside the row.
        (row["panels"] if section.collapsed else placed).extend(panels)
    return placed


def _flow(panels: Sequence[Panel], number: int, y: int) -> tuple[list[Json], int]:
    """Place panels from left to right, line by line; returns them and the next free line."""
    placed, x, tallest = [], 0, 0
    for place, panel in enumerate(panels):
        if x + panel.width > COLUMNS:
            x, y, tallest = 0, y + tallest, 0
        placed.append(panel.to_json(number + place, x, y))
        x, tallest = x + panel.width, max(tallest, panel.height)
    return placed, y + tallest
