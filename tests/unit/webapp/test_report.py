"""A report holds the server's answers, few enough, and tells the rest in plain HTML."""

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moe_megatron.errors import ConfigError, DataError
from moe_megatron.testing.written_run import write_run
from moe_megatron.webapp import report_answers
from moe_megatron.webapp.calls import answer
from moe_megatron.webapp.report import COMPARISON_FILE, render_report, write_report
from moe_megatron.webapp.report_answers import MOST_COLUMNS, MOST_DATA_BYTES, report_data
from moe_megatron.webapp.run_reader import RunReader
from moe_megatron.webapp.view import Lines, register_view, unregister_view

MakeRunDir = Callable[..., Path]
NOT_BUILT = Path("/nowhere")
HOSTILE = "</noscript><script>alert(1)</script>"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunReader:
    return RunReader(
        write_run(tmp_path_factory.mktemp("runs") / "run", 300, history=280, samples=50)
    )


def asked(address: str) -> tuple[str, dict[str, str]]:
    path, _, query = address.partition("?")
    return path.rpartition("/")[2], dict(it.split("=") for it in query.split("&") if it)


def test_what_it_holds_is_what_the_server_answers(run: RunReader) -> None:
    data = report_data([run])
    (about,) = data["runs"]
    base = f"/api/runs/{about['id']}"
    seen = set()
    for address, kept in data["calls"].items():
        if address in (base, f"{base}/log", "/api/views"):
            continue
        call, words = asked(address)
        found = answer(run, call, words)
        given = base64.b64decode(kept) if isinstance(found, bytes) else kept
        assert json.dumps(found) == json.dumps(given) if isinstance(given, dict) else found == given
        seen.add(call)
    needed = {"cost", "events", "flow", "layers", "matrix", "moves", "ranks", "series", "summary"}
    assert seen == needed | {"cells", "expert_cost"}
    assert data["calls"][base]["config"] == ""


def test_frames_follow_each_other_through_the_run_and_there_is_one_of_all(run: RunReader) -> None:
    data = report_data([run])
    base = f"/api/runs/{data['runs'][0]['id']}"
    spans = data["columns"][data["runs"][0]["id"]]
    assert 100 < len(spans) <= MOST_COLUMNS
    assert [step for first, last in spans for step in range(first, last + 1)] == [*range(1, 301)]
    for first, last in (*spans, (300, 300), (1, 300)):
        assert f"{base}/matrix?first={first}&last={last}&quantity=load" in data["calls"]


def test_a_large_model_has_fewer_frames(tmp_path: Path) -> None:
    layers = tuple(range(4, 65))
    folder = write_run(tmp_path / "big", 14, history=0, layers=layers, num_experts=256, samples=14)
    big = RunReader(folder)
    data = report_data([big])
    assert 5 <= len(data["columns"][big.facts.id]) <= 10
    assert len(json.dumps(data, separators=(",", ":"))) < MOST_DATA_BYTES
    (cells,) = [it for address, it in data["calls"].items() if "/cells?" in address]
    assert (cells["each"], len(cells["steps"])) == (2, 2)


def test_what_is_too_large_is_left_out_and_what_matters_most_goes_along(
    run: RunReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def held(most: int) -> dict[str, Any]:
        monkeypatch.setattr(report_answers, "MOST_DATA_BYTES", most)
        return report_data([run])["calls"]

    def size(calls: dict[str, Any]) -> int:
        return len(json.dumps(calls, separators=(",", ":")))

    least, whole = held(0), held(MOST_DATA_BYTES)
    needed = {"summary", "series", "layers", "events", "cost", "matrix"}
    assert needed <= {asked(it)[0] for it in least}
    assert {asked(it)[0] for it in whole} - needed > {"cells", "flow", "moves"}
    for most in range(size(least) + 2000, size(whole), 2000):
        calls = held(most)
        assert size(least) < size(calls) < most + 500  # and the addresses
        assert any("/cells?" in it for it in calls) or most < size(least) + 3000


def test_nothing_in_it_waits_for_news(run: RunReader) -> None:
    data = report_data([run])
    assert data["runs"][0]["state"] != "running"
    log = data["calls"][f"/api/runs/{data['runs'][0]['id']}/log"]
    assert "not part of a report" in log["lines"][0]


def test_views_of_ones_own_go_along(run: RunReader) -> None:
    @register_view("of_ones_own", title="Of one's own")
    def draw(run: Any, first: int, last: int) -> Lines:
        return Lines(x=[first, last], lines={"one": [1.0, 3.0]})

    try:
        data = report_data([run])
    finally:
        unregister_view("of_ones_own")
    assert data["calls"]["/api/views"] == [{"name": "of_ones_own", "title": "Of one's own"}]
    address = f"/api/runs/{data['runs'][0]['id']}/view?name=of_ones_own&first=1&last=300"
    assert data["calls"][address]["x"] == [1, 300]


def test_plain_report_says_the_summary_and_how_to_build_the_page(make_run_dir: MakeRunDir) -> None:
    html = render_report(make_run_dir(), page=NOT_BUILT)
    for text in (
        "<h1>run</h1>",
        "<td>training loss</td><td>8.000</td><td>best step 8.000</td>",
        "Router entropy (relative to its maximum)",
        "<h2>Dead experts</h2>",
        "<code>make ui</code>",
    ):
        assert text in html
    assert not re.search(r"https?://|<script|<link", html)


def test_plain_report_escapes_name_and_config(make_run_dir: MakeRunDir) -> None:
    run_dir = make_run_dir(name="<b>run & co")
    (run_dir / "config.yaml").write_text(f"name: {HOSTILE}\n")
    html = render_report(run_dir, page=NOT_BUILT)
    assert "&lt;b&gt;run &amp; co" in html
    assert "&lt;/noscript&gt;&lt;script&gt;alert(1)" in html
    assert "<b>run" not in html
    assert "<script>" not in html


def test_a_run_without_routing_or_with_one_step_has_a_report(make_run_dir: MakeRunDir) -> None:
    dense = make_run_dir(name="dense")
    (dense / "routing.jsonl").unlink()
    assert report_data([RunReader(dense)])["columns"][RunReader(dense).facts.id] == []
    short = RunReader(make_run_dir(1, name="short"))
    assert report_data([short])["columns"][short.facts.id] == [(1, 1)]


def test_report_goes_where_it_is_told(make_run_dir: MakeRunDir, tmp_path: Path) -> None:
    run_dir = make_run_dir()
    assert write_report(run_dir, page=NOT_BUILT) == run_dir / "report.html"
    other = tmp_path / "new" / "x.html"
    assert write_report(run_dir, other, page=NOT_BUILT) == other
    assert other.read_text() == (run_dir / "report.html").read_text()


def test_several_runs_share_the_room(tmp_path: Path, run: RunReader) -> None:
    others = [
        RunReader(write_run(tmp_path / f"run{i}", 300, history=0, samples=50, num_experts=256))
        for i in range(2)
    ]
    data = report_data([run, *others])
    ids = [it["id"] for it in data["runs"]]
    assert len(set(ids)) == 3
    assert len(data["columns"][ids[0]]) > len(data["columns"][ids[1]]) > 20
    for id_ in ids:
        held = {asked(it)[0] for it in data["calls"] if it.startswith(f"/api/runs/{id_}/")}
        assert {"summary", "series", "layers", "matrix", "cells", "moves"} <= held
    assert len(json.dumps(data, separators=(",", ":"))) < MOST_DATA_BYTES


def test_a_report_of_several_runs_stands_in_the_first_and_tells_of_each_once(
    make_run_dir: MakeRunDir,
) -> None:
    folders = [make_run_dir(name=f"{name} & co") for name in "ab"]
    path = write_report([*folders, folders[0]], page=NOT_BUILT)
    assert path == folders[0] / COMPARISON_FILE
    html = path.read_text()
    assert "<title>a &amp; co, b &amp; co - MoE Lab</title>" in html
    assert [html.count(f"<h1>{name} &amp; co</h1>") for name in "ab"] == [1, 1]
    for given in ([], [folders[0]] * 7):
        with pytest.raises(ConfigError, match=r"1 to 6 runs, not \d; give fewer"):
            render_report(given)


def test_folders_without_a_step_say_what_to_run(make_run_dir: MakeRunDir, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"jsonl: no such file.*`moe-megatron train` writes"):
        render_report(tmp_path)
    run_dir = make_run_dir(name="empty")
    for name in ("metrics.jsonl", "routing.jsonl"):
        (run_dir / name).write_text("")
    with pytest.raises(DataError, match=r"has no step record, .*\(moe-megatron train\)"):
        render_report(run_dir)
