"""A view from outside: one file, loaded by its path, answered as JSON that a browser reads."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from moe_megatron.errors import ConfigError, DataError
from moe_megatron.testing.written_run import LAYERS, step_routing, write_run
from moe_megatron.webapp import view as views_module
from moe_megatron.webapp.calls import answer
from moe_megatron.webapp.run_reader import RunReader
from moe_megatron.webapp.view import (
    Graph,
    Lines,
    Matrix,
    Table,
    load_view,
    register_view,
    unregister_view,
    views,
)

FILE = """
from moe_megatron.webapp.view import Lines, register_view

@register_view("top_share", title="Share of the busiest expert")
def top_share(run, first, last):
    spans, profiles = zip(*run.windows.columns(first, last, 200))
    shares = [profile.load_share.max(axis=1) for profile in profiles]
    lines = {f"layer {n}": [it[i] for it in shares] for i, n in enumerate(profiles[0].layers)}
    return Lines(x=[a for a, _ in spans], lines=lines)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunReader:
    return RunReader(write_run(tmp_path_factory.mktemp("runs") / "run", 12, history=0))


@pytest.fixture(autouse=True)
def only_ours() -> Iterator[None]:
    before = dict(views_module._views)
    yield
    for name in views_module._views.keys() - before.keys():
        unregister_view(name)


def test_a_view_is_one_file(run: RunReader, tmp_path: Path) -> None:
    path = tmp_path / "my_view.py"
    path.write_text(FILE)
    assert load_view(f"{path}:top_share").title == "Share of the busiest expert"
    assert [it.name for it in views()] == ["top_share"]
    found = json.loads(json.dumps(answer(run, "view", {"name": "top_share", "first": "3"})))
    assert (found["kind"], found["first"], found["last"]) == ("lines", 3, 12)
    assert found["x"] == list(range(3, 13))
    expected = [step_routing(step).load_share[1].max() for step in range(3, 13)]
    assert found["lines"][f"layer {LAYERS[1]}"] == pytest.approx(expected, rel=1e-5)


def test_a_function_that_is_not_registered_gets_its_own_name(tmp_path: Path) -> None:
    path = tmp_path / "my_view.py"
    path.write_text("def how_much(run, first, last):\n    return None\nx = 3\n")
    assert load_view(f"{path}:how_much").title == "how much"
    with pytest.raises(ConfigError, match="is no function; a view is a function"):
        load_view(f"{path}:x")


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (Matrix(values=[[1.0, math.nan]], rows=["a"]), {"kind": "matrix", "values": [[1.0, None]]}),
        (Lines(x=[1], lines={"a": [math.inf]}), {"kind": "lines", "lines": {"a": [None]}}),
        (Table(columns=["a"], rows=[["<b>", math.nan]]), {"rows": [["<b>", None]]}),
        (
            Graph(nodes=["a"], links=[("a", "a", 0.5)]),
            {"links": [{"from": "a", "to": "a", "weight": 0.5}]},
        ),
    ],
)
def test_what_a_view_shows_is_json(run: RunReader, shown, expected) -> None:
    register_view("mine", title="Mine")(lambda run, first, last: shown)
    found = answer(run, "view", {"name": "mine"})
    assert {key: found[key] for key in expected} == expected
    json.dumps(found, allow_nan=False)


def test_mistakes_say_what_to_do(run: RunReader) -> None:
    register_view("mine", title="Mine")(lambda run, first, last: [1, 2])
    with pytest.raises(DataError, match="gave list; let its function return a Matrix"):
        answer(run, "view", {"name": "mine"})
    with pytest.raises(DataError, match=r"Did you mean 'mine'.*Views are: mine"):
        answer(run, "view", {"name": "mines"})
    with pytest.raises(ConfigError, match="already a view 'mine'"):
        register_view("mine", title="")
    with pytest.raises(ConfigError, match="cannot be named 'Not this'"):
        register_view("Not this", title="")
