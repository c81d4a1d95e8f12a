"""Panels of a Grafana dashboard in the classic schema, as values.

A panel has a title, a description, a unit and queries; `layout` decides where it is placed.
`panel_shapes` allows only what these functions write, so a new option must be added to both.
"""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

Json = dict[str, Any]

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}

Format = Literal["time_series", "heatmap", "table"]

_NAME = re.compile(r"\b(?:moe_\w+|up|ALERTS|scrape_\w+)(?=\{)")


@dataclass(frozen=True, slots=True)
class Query:
    """One query of a panel.

    Attributes:
        expr: PromQL.
        legend: name of each line, in which {{label}} is replaced by the label's value.
        format: how Grafana reads the result.
        instant: whether to query only the newest value.
    """

    expr: str
    legend: str = ""
    format: Format = "time_series"
    instant: bool = False

    def to_json(self, number: int) -> Json:
        """The query as a Grafana target, number 0 with the letter A."""
        return {
            "datasource": DATASOURCE,
            "editorMode": "code",
            "expr": self.expr,
            "format": self.format,
            "instant": self.instant,
            "legendFormat": self.legend,
            "range": not self.instant,
            "refId": chr(ord("A") + number),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One panel.

    Attributes:
        type: Grafana's name of the type.
        title: a few words.
        description: what it shows and what is good; the names of its metrics are appended.
        unit: Grafana's identifier of the unit.
        queries: at most 26.
        width: in columns, of which there are 24.
        height: in rows of 30 pixels.
        options: options of this type of panel.
        custom: value of fieldConfig.defaults.custom.
        defaults: further values in fieldConfig.defaults, such as thresholds.
        transformations: of the result, for tables.
        overrides: of the defaults, for columns of tables.
    """

    type: str
    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    width: int
    height: int
    options: Json
    custom: Json = field(default_factory=dict)
    defaults: Json = field(default_factory=dict)
    transformations: list[Json] = field(default_factory=list)
    overrides: list[Json] = field(default_factory=list)

    def to_json(self, number: int, x: int, y: int) -> Json:
        """The panel with its id and position."""
        defaults: Json = {"unit": self.unit, **self.defaults}
        if self.custom:
            defaults["custom"] = self.custom
        names = sorted({name for query in self.queries for name in _NAME.findall(query.expr)})
        panel: Json = {
            "datasource": DATASOURCE,
            "description": f"{self.description}\n\nMetrics: {', '.join(names)}",
            "fieldConfig": {"defaults": defaults, "overrides": self.overrides},
            "gridPos": {"h": self.height, "w": self.width, "x": x, "y": y},
            "id": number,
            "options": self.options,
            "targets": [query.to_json(place) for place, query in enumerate(self.queries)],
            "title": self.title,
            "type": self.type,
        }
        if self.transformations:
            panel["transformations"] = self.transformations
        return panel


def thresholds(*steps: tuple[float, str], base: str = "green") -> Json:
    """A colour for each range of values: `base`, then each step's colour from its value on."""
    colours: list[Json] = [{"color": base, "value": None}]
    colours += [{"color": colour, "value": value} for value, colour in steps]
    return {"color": {"mode": "thresholds"}, "thresholds": {"mode": "absolute", "steps": colours}}


def lines(
    title: str,
    unit: str,
    description: str,
    *queries: Query,
    width: int = 12,
    stacked: bool = False,
    defaults: Json | None = None,
) -> Panel:
    """A panel of values over time."""
    stacking = {"group": "A", "mode": "normal" if stacked else "none"}
    return Panel(
        type="timeseries",
        title=title,
        description=description,
        unit=unit,
        queries=queries,
        width=width,
        height=8,
        options={
            "legend": {
                "calcs": ["lastNotNull"],
                "displayMode": "list",
                "placement": "bottom",
                "showLegend": True,
            },
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        custom={
            "drawStyle": "line",
            "fillOpacity": 30 if stacked else 0,
            "lineWidth": 1,
            "showPoints": "auto",
            "spanNulls": False,
            "stacking": stacking,
        },
        defaults=defaults or {},
    )


def number(
    title: str,
    unit: str,
    description: str,
    expr: str,
    *,
    width: int = 4,
    graph: bool = True,
    defaults: Json | None = None,
) -> Panel:
    """A panel with the newest value in large print, over a small `graph` of its past.

    It is coloured if `defaults` has thresholds.
    """
    return Panel(
        type="stat",
        title=title,
        description=description,
        unit=unit,
        queries=(Query(expr, legend=title),),
        width=width,
        height=4,
        options={
            "colorMode": "value",
            "graphMode": "area" if graph else "none",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "textMode": "value",
        },
        defaults={"color": {"fixedColor": "text", "mode": "fixed"}} | (defaults or {}),
    )


def heatmap(title: str, unit: str, description: str, expr: str, *, width: int = 24) -> Panel:
    """A panel of a histogram over time; the result of `expr` must keep the label `le`."""
    return Panel(
        type="heatmap",
        title=title,
        description=description,
        unit=unit,
        queries=(Query(expr, legend="{{le}}", format="heatmap"),),
        width=width,
        height=9,
        options={
            "calculate": False,
            "cellGap": 1,
            "color": {
                "exponent": 0.5,
                "fill": "dark-orange",
                "mode": "scheme",
                "reverse": False,
                "scale": "exponential",
                "scheme": "Oranges",
                "steps": 64,
            },
            "filterValues": {"le": 1e-9},  # cells without experts stay empty
            "legend": {"show": True},
            "rowsFrame": {"layout": "auto"},
            "tooltip": {"mode": "single", "showColorScale": True, "yHistogram": False},
            "yAxis": {"axisPlacement": "left", "reverse": False, "unit": unit},
        },
        custom={
            "hideFrom": {"legend": False, "tooltip": False, "viz": False},
            "scaleDistribution": {"type": "linear"},
        },
    )


def bands(
    title: str,
    unit: str,
    description: str,
    query: Query,
    *,
    colours: Json,
    width: int = 12,
    height: int = 8,
    names: bool = False,
) -> Panel:
    """A panel with one coloured band over time for each series, such as a layer.

    Values that are `names`, such as numbers of experts, are written into the band.
    """
    return Panel(
        type="state-timeline",
        title=title,
        description=description,
        unit=unit,
        queries=(query,),
        width=width,
        height=height,
        options={
            "alignValue": "left",
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": not names},
            "mergeValues": True,
            "rowHeight": 0.9,
            "showValue": "auto" if names else "never",
            "tooltip": {"mode": "single", "sort": "none"},
        },
        custom={"fillOpacity": 80, "lineWidth": 0},
        defaults=colours,
    )


def table(title: str, description: str, expr: str, hide: tuple[str, ...], width: int = 24) -> Panel:
    """A table of the newest labels, without the columns in `hide`."""
    return Panel(
        type="table",
        title=title,
        description=description,
        unit="none",
        queries=(Query(expr, format="table", instant=True),),
        width=width,
        height=4,
        options={"cellHeight": "sm", "showHeader": True},
        transformations=[
            {"id": "organize", "options": {"excludeByName": dict.fromkeys(hide, True)}}
        ],
    )


@dataclass(frozen=True, slots=True)
class Column:
    """A column of `summary`: its heading, Grafana's unit, a query by its lines, and colours."""

    heading: str
    unit: str
    expr: str
    colours: Json | None = None


def summary(
    title: str,
    description: str,
    *columns: Column,
    lines_by: str,
    link: Json,
    height: int,
    worst: str | None = None,
) -> Panel:
    """A table of the newest values with a line for each value of a label.

    Args:
        title: A few words.
        description: What it shows and what is good.
        columns: In addition to that of the label.
        lines_by: The label.
        link: From each value of the label to its dashboard.
        height: In rows of 30 pixels.
        worst: Heading of the column whose largest values come first.
    """
    names = {f"Value #{chr(ord('A') + place)}": c.heading for place, c in enumerate(columns)}
    overrides = [_override(lines_by, {"id": "links", "value": [link]})]
    for column in columns:
        properties: list[Json] = [{"id": "unit", "value": column.unit}]
        if column.unit == "locale":
            properties.append({"id": "decimals", "value": 0})
        if column.colours:
            properties += [{"id": name, "value": value} for name, value in column.colours.items()]
            properties.append({"id": "custom.cellOptions", "value": {"type": "color-text"}})
        overrides.append(_override(column.heading, *properties))
    return Panel(
        type="table",
        title=title,
        description=description,
        unit="none",
        queries=tuple(Query(c.expr, format="table", instant=True) for c in columns),
        width=24,
        height=height,
        options={
            "cellHeight": "sm",
            "showHeader": True,
            "sortBy": [] if worst is None else [{"desc": True, "displayName": worst}],
        },
        custom={"minWidth": 80},  # so that all columns fit into the page
        overrides=overrides,
        transformations=[
            {"id": "merge", "options": {}},
            {"id": "organize", "options": {"excludeByName": {"Time": True}, "renameByName": names}},
        ],
    )


def _override(column: str, *properties: Json) -> Json:
    return {"matcher": {"id": "byName", "options": column}, "properties": list(properties)}
