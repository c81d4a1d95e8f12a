"""A view of one's own is one Python file: a name, a title, and a function of a run and a window.

    from moe_megatron.webapp.view import Lines, register_view

    @register_view("top_share", title="Share of the busiest expert")
    def top_share(run, first, last):
        spans, profiles = zip(*run.windows.columns(first, last, 200))
        shares = [profile.load_share.max(axis=1) for profile in profiles]
        return Lines(x=[a for a, _ in spans], lines={"layer 1": [it[0] for it in shares]})

The page draws what the function returns as it draws its own views. Whoever starts the dashboard
names the file (`moe-megatron dashboard --view my_view.py:top_share`), or imports it in Python.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from moe_megatron.config.checks import join_words, nearest
from moe_megatron.config.own_code import load_code
from moe_megatron.errors import ConfigError, DataError
from moe_megatron.telemetry.values.per_layer import find_name_problem
from moe_megatron.webapp.asked import Asked
from moe_megatron.webapp.json_values import nested, rounded
from moe_megatron.webapp.run_reader import RunReader

Cell = str | float | int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """Numbers in rows and columns, drawn as a heatmap."""

    kind: ClassVar[str] = "matrix"
    values: npt.NDArray[np.float64]
    """[rows, columns]; NaN where there is none."""
    rows: Sequence[str] = ()
    columns: Sequence[str] = ()
    centre: float | None = None
    """Value that is neither much nor little; None for a scale from least to most."""

    def to_json(self) -> dict[str, Any]:
        """As the page reads it."""
        return {
            "values": nested(np.asarray(self.values, dtype=np.float64)),
            "rows": list(self.rows),
            "columns": list(self.columns),
            "centre": self.centre,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """One or more curves over the same x."""

    kind: ClassVar[str] = "lines"
    x: Sequence[float]
    lines: Mapping[str, Sequence[float]]
    x_label: str = "step"

    def to_json(self) -> dict[str, Any]:
        """As the page reads it."""
        return {
            "x": rounded(self.x),
            "lines": {name: rounded(values) for name, values in self.lines.items()},
            "x_label": self.x_label,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Words and numbers in rows."""

    kind: ClassVar[str] = "table"
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def to_json(self) -> dict[str, Any]:
        """As the page reads it."""
        return {
            "columns": list(self.columns),
            "rows": [
                [rounded([it])[0] if isinstance(it, float) else it for it in row]
                for row in self.rows
            ],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """Nodes, and weighted links between them by their names."""

    kind: ClassVar[str] = "graph"
    nodes: Sequence[str]
    links: Sequence[tuple[str, str, float]] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """As the page reads it."""
        return {
            "nodes": list(self.nodes),
            "links": [{"from": a, "to": b, "weight": rounded([w])[0]} for a, b, w in self.links],
        }


Shown = Matrix | Lines | Table | Graph
Draw = Callable[[RunReader, int, int], Shown]


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A registered view."""

    name: str
    title: str
    draw: Draw


_views: dict[str, View] = {}


def register_view(name: str, *, title: str) -> Callable[[Draw], Draw]:
    """Decorator that adds a view to every dashboard of this process.

    Args:
        name: Lower-case letters, digits and underscores; part of its address.
        title: What the page calls it.

    Raises:
        ConfigError: The name cannot be used, or is taken.
    """
    if find_name_problem(name):
        raise ConfigError(
            f"a view cannot be named {name!r}; begin with a lower-case letter, and go on with "
            "lower-case letters, digits and underscores, at most 40 in all."
        )
    if name in _views:
        raise ConfigError(f"there is already a view '{name}'; choose another name for the new one.")

    def register(draw: Draw) -> Draw:
        _views[name] = View(name=name, title=title, draw=draw)
        return draw

    return register


def load_view(spec: str) -> View:
    """Add the view in a file of the user's own.

    Args:
        spec: The file, a colon, and the name of the function in it, as `my_view.py:my_view`. One
            that is not registered there is, under its own name.

    Raises:
        ConfigError: There is none, or its name is taken.
    """
    code = load_code(spec, "view")
    found = next((it for it in _views.values() if it.draw is code.found), None)
    if found is not None:
        return found
    if not callable(code.found):
        raise ConfigError(
            f"{code.place} is no function; a view is a function of a run, a first and a last step."
        )
    register_view(code.name, title=code.name.replace("_", " "))(code.found)
    return _views[code.name]


def unregister_view(name: str) -> None:
    """Remove a view, if there is one with this name."""
    _views.pop(name, None)


def views() -> tuple[View, ...]:
    """All registered views, in the order of their registration."""
    return tuple(_views.values())


def view(run: RunReader, asked: Asked) -> dict[str, Any]:
    """What a registered view shows of a window.

    Raises:
        DataError: There is no such view, or it does not give what it should.
    """
    name = asked.text("name", "")
    found = _views.get(name)
    if found is None:
        known = (
            join_words(list(_views), "and") if _views else "none; register one with register_view"
        )
        raise DataError(f"there is no such view.{nearest(name, _views)} Views are: {known}.")
    first, last = asked.window(run.span)
    shown = found.draw(run, first, last)
    if not isinstance(shown, Matrix | Lines | Table | Graph):
        raise DataError(
            f"the view '{name}' gave {type(shown).__name__}; let its function return a Matrix, "
            "Lines, Table or Graph of moe_megatron.webapp.view."
        )
    return {
        "name": found.name,
        "title": found.title,
        "first": first,
        "last": last,
        "kind": shown.kind,
        **shown.to_json(),
    }
