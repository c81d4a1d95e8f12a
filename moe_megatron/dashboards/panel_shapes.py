"""The allowed JSON of a dashboard: every key, and the values of every choice.

It is stricter than Grafana, whose own schemas leave options and queries open. Only what `panels`
and `layout` write is allowed, so that a misspelt key or choice is a fault instead of a setting that
Grafana silently ignores.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from moe_megatron.dashboards.panels import DATASOURCE

Shape = Any
"""A type, a set of allowed values, [shape of each item], {key: shape} ("?key" may be missing), or a
function that returns what is wrong or None."""

_UNITS = {"none", "locale", "s", "percentunit", "bytes", "sci", "flops", "currencyUSD"}
_COLOURS = {"green", "yellow", "orange", "red", "text"}


def _unit(value: Any) -> str | None:
    if value in _UNITS or (isinstance(value, str) and re.fullmatch(r"(suffix|count):.+", value)):
        return None
    known = ", ".join(sorted(_UNITS))
    return f"{value!r} is not a unit in use here ({known}, suffix:TEXT or count:TEXT)"


def _datasource(value: Any) -> str | None:
    return None if value == DATASOURCE else f"must be the variable ${{datasource}}, not {value!r}"


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) and value.strip() else "must be a text"


def _uid(value: Any) -> str | None:
    good = isinstance(value, str) and re.fullmatch(r"[a-z0-9-]{1,40}", value)
    return None if good else f"must be 1 to 40 of a-z, 0-9 and '-', not {value!r}"


def _seconds_or_off(value: Any) -> str | None:
    good = isinstance(value, str) and re.fullmatch(r"\d+[smh]", value)
    return None if good else f"must be a time such as 30s, not {value!r}"


def _threshold(value: Any) -> str | None:
    return None if value is None or isinstance(value, int | float) else "must be a number or null"


def _natural(value: Any) -> str | None:
    return None if type(value) is int and value >= 0 else f"must be a whole number, not {value!r}"


def _percent(value: Any) -> str | None:
    good = type(value) is int and 0 <= value <= 100
    return None if good else f"must be a whole number from 0 to 100, not {value!r}"


def _share(value: Any) -> str | None:
    good = type(value) in {int, float} and 0 < value <= 1
    return None if good else f"must be above 0 and at most 1, not {value!r}"


def _anything(value: Any) -> str | None:
    return None


_GRID = {"h": _natural, "w": _natural, "x": _natural, "y": _natural}
_LEGEND = {
    "?calcs": [{"lastNotNull"}],
    "displayMode": {"list"},
    "placement": {"bottom"},
    "showLegend": bool,
}
_TOOLTIP = {"mode": {"single", "multi"}, "sort": {"none", "desc"}}

OPTIONS: Mapping[str, Shape] = {
    "timeseries": {"legend": _LEGEND, "tooltip": _TOOLTIP},
    "stat": {
        "colorMode": {"value"},
        "graphMode": {"area", "none"},
        "reduceOptions": {"calcs": [{"lastNotNull"}], "fields": {""}, "values": bool},
        "textMode": {"value"},
    },
    "heatmap": {
        "calculate": bool,
        "cellGap": int,
        "color": {
            "exponent": float, "fill": {"dark-orange"}, "mode": {"scheme"}, "reverse": bool,
            "scale": {"exponential"}, "scheme": {"Oranges"}, "steps": int,
        },
        "filterValues": {"le": float},
        "legend": {"show": bool},
        "rowsFrame": {"layout": {"auto"}},
        "tooltip": {"mode": {"single"}, "showColorScale": bool, "yHistogram": bool},
        "yAxis": {"axisPlacement": {"left"}, "reverse": bool, "unit": _unit},
    },
    "state-timeline": {
        "alignValue": {"left"},
        "legend": _LEGEND,
        "mergeValues": bool,
        "rowHeight": _share,
        "showValue": {"never", "auto"},
        "tooltip": _TOOLTIP,
    },
    "table": {
        "cellHeight": {"sm"},
        "showHeader": bool,
        "?sortBy": [{"desc": bool, "displayName": _text}],
    },
}  # fmt: skip
"""Options of each type of panel; no other types are allowed."""

CUSTOM: Mapping[str, Shape] = {
    "timeseries": {
        "drawStyle": {"line"},
        "fillOpacity": _percent,
        "lineWidth": int,
        "showPoints": {"auto"},
        "spanNulls": bool,
        "stacking": {"group": {"A"}, "mode": {"none", "normal"}},
    },
    "heatmap": {
        "hideFrom": {"legend": bool, "tooltip": bool, "viz": bool},
        "scaleDistribution": {"type": {"linear"}},
    },
    "state-timeline": {"fillOpacity": _percent, "lineWidth": int},
    "table": {"minWidth": _natural},
}

_TARGET = {
    "datasource": _datasource,
    "editorMode": {"code"},
    "expr": _text,
    "format": {"time_series", "heatmap", "table"},
    "instant": bool,
    "legendFormat": str,
    "range": bool,
    "refId": str,
}

_QUERY_VARIABLE = {
    "datasource": _datasource,
    "definition": _text,
    "description": _text,
    "?allValue": _text,
    "includeAll": bool,
    "label": _text,
    "multi": bool,
    "name": _text,
    "query": {"query": _text, "refId": _text},
    "refresh": {2},
    "sort": {1, 3},
    "type": {"query"},
}
_VARIABLES: Mapping[str, Shape] = {
    "query": _QUERY_VARIABLE,
    "datasource": {
        "description": _text, "label": _text, "name": _text, "query": {"prometheus"},
        "refresh": {1}, "type": {"datasource"},
    },
    "textbox": {
        "description": _text, "label": _text, "name": _text, "query": _text, "type": {"textbox"},
    },
}  # fmt: skip

_ANNOTATION = {
    "datasource": _datasource, "enable": bool, "expr": _text, "iconColor": _COLOURS, "name": _text,
    "step": {"60s"}, "textFormat": _text, "titleFormat": _text, "useValueForTime": {"on"},
}  # fmt: skip

_OVERRIDE = {
    "matcher": {"id": {"byName"}, "options": _text},
    "properties": [
        {
            "id": {"unit", "decimals", "links", "color", "thresholds", "custom.cellOptions"},
            "value": _anything,
        }
    ],
}

_DASHBOARD = {
    "annotations": {"list": [_ANNOTATION]},
    "description": _text,
    "editable": {False},
    "graphTooltip": {0, 1, 2},
    "links": [
        {
            "asDropdown": bool, "icon": {"dashboard"}, "includeVars": {True}, "keepTime": {True},
            "tags": [_text], "targetBlank": bool, "title": _text, "type": {"dashboards"},
        }
    ],
    "panels": list,
    "refresh": _seconds_or_off,
    "schemaVersion": {39},
    "tags": [_text],
    "templating": {"list": list},
    "time": {"from": _text, "to": _text},
    "timezone": {"browser"},
    "title": _text,
    "uid": _uid,
    "version": int,
}  # fmt: skip

_ROW = {
    "collapsed": bool, "gridPos": _GRID, "id": int, "panels": list, "title": _text, "type": {"row"},
}  # fmt: skip


def dashboard_faults(dashboard: Any) -> Iterator[str]:
    """What is wrong with a dashboard and its variables, not looking into panels."""
    yield from conform(dashboard, _DASHBOARD, "dashboard")
    if not isinstance(dashboard, dict):
        return
    variables = dashboard.get("templating", {}).get("list", [])
    for place, variable in enumerate(variables):
        kind = variable.get("type")
        shape = _VARIABLES.get(kind, {"type": set(_VARIABLES)})
        yield from conform(variable, shape, f"variable {variable.get('name', place)}")


def panel_faults(panel: Any, where: str) -> Iterator[str]:
    """What is wrong with one panel or row."""
    kind = panel.get("type")
    if kind == "row":
        yield from conform(panel, _ROW, where)
    elif kind not in OPTIONS:
        yield f"{where}: there is no panel of type {kind!r}; use {', '.join(OPTIONS)}"
    else:
        yield from conform(panel, _panel_shape(kind), where)


def _panel_shape(kind: str) -> Shape:
    colour = {"mode": {"thresholds", "fixed", "continuous-BlPu"}, "?fixedColor": _COLOURS}
    steps = [{"color": _COLOURS, "value": _threshold}]
    defaults = {
        "unit": _unit,
        "?decimals": _natural,
        "?color": colour,
        "?thresholds": {"mode": {"absolute"}, "steps": steps},
        "?links": [{"title": _text, "url": _text}],
    }
    if kind in CUSTOM:
        # A table that is not a summary has none.
        defaults["?custom" if kind == "table" else "custom"] = CUSTOM[kind]
    panel = {
        "datasource": _datasource,
        "description": _text,
        "fieldConfig": {"defaults": defaults, "overrides": [_OVERRIDE]},
        "gridPos": _GRID,
        "id": _natural,
        "options": OPTIONS[kind],
        "targets": [_TARGET],
        "title": _text,
        "type": {kind},
    }
    if kind == "table":
        options = {"?excludeByName": dict, "?renameByName": dict}
        panel["transformations"] = [{"id": {"organize", "merge"}, "options": options}]
    return panel


def conform(value: Any, shape: Shape, where: str) -> Iterator[str]:
    """The parts of `value` that do not have the shape, as sentences."""
    if isinstance(shape, type):
        if type(value) is not shape:
            yield f"{where}: must be of type {shape.__name__}, not {value!r:.60}"
    elif isinstance(shape, set):
        if not any(value == allowed and type(value) is type(allowed) for allowed in shape):
            yield f"{where}: must be one of {sorted(map(str, shape))}, not {value!r:.60}"
    elif isinstance(shape, list):
        if isinstance(value, list):
            for place, item in enumerate(value):
                yield from conform(item, shape[0], f"{where}[{place}]")
        else:
            yield f"{where}: must be a list, not {value!r:.60}"
    elif isinstance(shape, dict):
        yield from _conform_keys(value, shape, where)
    else:
        yield from _judge(shape, value, where)


def _conform_keys(value: Any, shape: Mapping[str, Shape], where: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{where}: must be an object, not {value!r:.60}"
        return
    known = {key.removeprefix("?"): inner for key, inner in shape.items()}
    for key in value.keys() - known.keys():
        yield f"{where}: unknown key {key!r}; known are {', '.join(sorted(known))}"
    for key in (key for key in shape if not key.startswith("?") and key not in value):
        yield f"{where}: {key!r} is missing"
    for key in value.keys() & known.keys():
        yield from conform(value[key], known[key], f"{where}.{key}")


def _judge(find_fault: Callable[[Any], str | None], value: Any, where: str) -> Iterator[str]:
    if fault := find_fault(value):
        yield f"{where}: {fault}"
