"""The dashboard's page in a real browser: of a run that has ended, one that trains, a report."""

import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from moe_megatron.telemetry.journal import note
from moe_megatron.telemetry.sinks.jsonl import ROUTING_FILE, read_routing
from moe_megatron.testing.programs import Program
from moe_megatron.testing.written_run import step_sample, write_run
from moe_megatron.webapp.frames import load_bytes
from moe_megatron.webapp.report import write_report
from moe_megatron.webapp.run_facts import run_id
from moe_megatron.webapp.serving import DashboardOptions, DashboardServer
from moe_megatron.webapp.view import (
    Graph,
    Lines,
    Matrix,
    Shown,
    Table,
    register_view,
    unregister_view,
)
from tests.functional.watched_page import Watched

pytestmark = [pytest.mark.deep, pytest.mark.distributed]

STEPS = 12
VIEWS = ("routing", "training", "changes", "ranks", "compare", "cost", "flow", "summary", "tokens")
HOSTILE = "<img src=x onerror=alert(1)>"
"""What somebody may call a run; as text it does nothing."""


@pytest.fixture(scope="module")
def runs(moe: Callable[..., Program], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that has ended, and a copy of it under a hostile name."""
    folder = tmp_path_factory.mktemp("runs")
    words = ("--mock-data", "--train-iters", STEPS, "--save-interval", 6, "--num-processes", 1)
    words += ("--run-dir", "first", "--set", "telemetry.sample_interval=6")
    program = moe(folder, "train", "--config", "test_tiny", *words)
    assert program.end(200) == 0, program.output
    shutil.copytree(folder / "first", folder / HOSTILE)
    return folder


@pytest.fixture(scope="module")
def first(runs: Path) -> str:
    return run_id(runs / "first")


@pytest.fixture(scope="module")
def server(runs: Path, page: Path) -> Iterator[DashboardServer]:
    with DashboardServer(DashboardOptions(folders=[runs], port=0, page=page)) as server:
        yield server


@pytest.fixture
def watched(browser: Browser, server: DashboardServer) -> Iterator[Watched]:
    context = browser.new_context(
        viewport={"width": 1280, "height": 900}, color_scheme="light", reduced_motion="reduce"
    )
    context.set_default_timeout(30_000)
    watched = Watched(context.new_page(), server.url)
    yield watched
    context.close()
    assert watched.wrong == []


expect.set_options(timeout=30_000)


def answer(server: DashboardServer, path: str) -> bytes:
    with urlopen(server.url + path) as found:
        body: bytes = found.read()
    return body


def loads(server: DashboardServer, run: str, step: int) -> list[list[int]]:
    """The bytes of a frame, as the server says them. [L][E]"""
    frame = answer(server, f"api/runs/{run}/matrix?first={step}&last={step}&quantity=load")
    experts = int.from_bytes(frame[14:16], "little")
    cells = list(frame[16:])
    return [cells[i : i + experts] for i in range(0, len(cells), experts)]


COLOURS = """([rows, columns]) => {
  const canvas = document.querySelector(".matrix-canvas canvas");
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");
  copy.drawImage(canvas, 0, 0);
  const {data} = copy.getImageData(0, 0, canvas.width, canvas.height);
  const at = (place, count, size) => Math.floor((place + 0.2) * size / count);
  return Array.from({length: rows * columns}, (_, i) => {
    const x = at(i % columns, columns, canvas.width);
    const start = 4 * (at(Math.floor(i / columns), rows, canvas.height) * canvas.width + x);
    return [...data.slice(start, start + 4)];
  });
}"""


def colours(page: Page, rows: int, columns: int) -> list[list[int]]:
    """Red, green, blue and alpha of each cell, read away from its mark."""
    page.wait_for_function("() => document.querySelector('.matrix-canvas canvas')?.width > 300")
    page.wait_for_timeout(300)
    found: list[list[int]] = page.evaluate(COLOURS, [rows, columns])
    return found


def test_canvas_has_the_colours_of_the_loads(watched: Watched, server: DashboardServer, first: str):
    page = watched.go(f"#run={first}&step={STEPS}")
    cells = loads(server, first, STEPS)
    seen = {}
    bytes_of_cells = [byte for row in cells for byte in row]
    painted = colours(page, len(cells), len(cells[0]))
    for byte, (red, _, blue, alpha) in zip(bytes_of_cells, painted, strict=True):
        assert alpha == 255
        seen[byte] = red - blue
    # Under a fair share blue, over it orange, and the more the stronger.
    warmth = [seen[byte] for byte in sorted(seen)]
    assert warmth == sorted(warmth)
    assert warmth[0] < 0 < warmth[-1]


def test_keyboard_opens_an_expert_and_goes_through_time(watched: Watched, first: str):
    page = watched.go(f"#run={first}&step={STEPS}")
    page.locator(".matrix-canvas canvas").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    expect(page.locator("[aria-live]", has_text="Layer 2, expert 2")).to_have_count(1)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Layer 2, expert 2")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    expect(page.get_by_role("heading", name="Layer 2, expert 2")).to_have_count(0)
    page.locator("#main").focus()
    page.keyboard.press(",")
    page.wait_for_function(f"() => location.hash.includes('step={STEPS - 1}')")
    expect(page.get_by_text(f"step {STEPS - 1}.", exact=False).first).to_be_visible()
    page.keyboard.press("2")
    expect(page.get_by_role("heading", name="Training", exact=True)).to_be_visible()
    page.go_back()
    expect(page.get_by_role("heading", name="Where tokens go")).to_be_visible()


def test_link_leads_to_a_view_a_step_and_a_cell(watched: Watched, first: str):
    page = watched.go(f"#run={first}&step=7&cell=1.3&order=load")
    expect(page.get_by_role("heading", name="Layer 1, expert 3")).to_be_visible()
    expect(page.get_by_role("slider", name="Step")).to_have_value("7")
    expect(page.get_by_role("button", name="Load", exact=True)).to_have_attribute(
        "aria-pressed", "true"
    )


def test_play_goes_through_the_history(watched: Watched, first: str):
    page = watched.go(f"#run={first}&step=1")
    page.get_by_role("button", name="Play the history").click()
    page.wait_for_function(f"() => location.hash.includes('step={STEPS}')")
    expect(page.get_by_role("button", name="Play the history")).to_be_visible()


def look_at_every_view(watched: Watched, run: str, axe: str, folder: Path) -> None:
    """Open each view, with an expert where there is one: drawn, readable by all, and no wider than
    the screen."""
    found = {}
    for view in VIEWS:
        page = watched.go(f"#run={run}&view={view}&cell=1.0")
        expect(page.locator(".waiting")).to_have_count(0)
        expect(page.get_by_role("alert")).to_have_count(0)
        page.wait_for_function("document.documentElement.scrollWidth <= innerWidth")
        page.evaluate(axe)
        answer = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        found |= {(view, one["id"]): one["nodes"][0]["html"] for one in answer["violations"]}
        picture = page.screenshot(path=folder / f"{view}.png")
        assert len(picture) > 10_000, view
    assert found == {}


@pytest.fixture(scope="module")
def axe(frontend: Path) -> str:
    return (frontend / "node_modules" / "axe-core" / "axe.min.js").read_text()


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 360)])
def test_every_view_of_a_run_that_has_ended(
    watched: Watched, axe: str, first: str, theme: Any, width: int, tmp_path: Path
):
    watched.page.emulate_media(color_scheme=theme)
    watched.page.set_viewport_size({"width": width, "height": 740})
    look_at_every_view(watched, first, axe, tmp_path)


@pytest.mark.parametrize("view", [it for it in VIEWS if it not in ("ranks", "flow", "tokens")])
def test_what_a_view_shows_can_be_kept(watched: Watched, first: str, view: str, tmp_path: Path):
    page = watched.go(f"#run={first}&view={view}&step={STEPS}")
    expect(page.locator(".waiting")).to_have_count(0)
    for panel in page.locator(".save").all():
        expect(panel.get_by_role("button")).to_have_text(["PNG", "SVG", "CSV"])
    for place in (0, -1):
        assert len(keep(page, tmp_path, place)["CSV"].splitlines()) > 2


def keep(page: Page, folder: Path, place: int = 0) -> dict[str, bytes]:
    """What the three buttons of a panel save."""
    kept = {}
    for kind in ("SVG", "PNG", "CSV"):
        with page.expect_download() as download:
            page.get_by_role("button", name=kind, exact=True).nth(place).click()
        download.value.save_as(folder / kind)
        kept[kind] = (folder / kind).read_bytes()
    assert ET.fromstring(kept["SVG"]).tag == "{http://www.w3.org/2000/svg}svg"
    assert kept["PNG"].startswith(b"\x89PNG")
    return kept


OWN: list[tuple[Shown, str]] = [
    (Lines(x=[1, 2, 3], lines={"one": [1.0, 3.0, 2.0]}), "step,one\r\n1,1\r\n2,3\r\n3,2\r\n"),
    (
        Matrix(values=np.array([[1.0, np.nan], [0.5, 4.0]]), rows=[HOSTILE, "b"], centre=1.0),
        f",0,1\r\n{HOSTILE},1,\r\nb,0.5,4\r\n",
    ),
    (Table(columns=["a", "b"], rows=[[HOSTILE, 1.5]]), f"a,b\r\n{HOSTILE},1.5\r\n"),
    (
        Graph(nodes=["x", "y"], links=[("x", "y", 2.0), ("y", "x", 1.0)]),
        "from,to,weight\r\nx,y,2\r\ny,x,1\r\n",
    ),
]


@pytest.mark.parametrize(("shown", "table"), OWN, ids=[shown.kind for shown, _ in OWN])
def test_view_of_ones_own_is_a_tab_and_can_be_kept(
    watched: Watched, first: str, tmp_path: Path, shown: Shown, table: str
):
    register_view("of_ones_own", title="Of one's own")(lambda run, first, last: shown)
    try:
        page = watched.go(f"#run={first}")
        page.get_by_role("button", name="Of one's own").click()
        expect(page.get_by_role("heading", name="Of one's own", exact=True)).to_be_visible()
        kept = keep(page, tmp_path)
    finally:
        unregister_view("of_ones_own")
    assert kept["CSV"].decode() == table
    assert "Of one's own" in ET.fromstring(kept["SVG"])[0].text


def test_tokens_are_text_whatever_they_are(browser: Browser, page: Path, tmp_path: Path):
    """Shown only with --show-tokens; markup, marks of direction and line ends do nothing."""
    run = write_run(tmp_path / "run", STEPS, samples=6, tokens=True)
    hostile = [HOSTILE, "</script>", "\u202egnp.exe", "javascript:alert(1)", "a\nb"]
    vocabulary = {it: place for place, it in enumerate([*hostile, *"cdefg", "</s>"])}
    words = WordLevel(vocabulary, unk_token="</s>")
    recorded = int((step_sample(STEPS, tokens=True).tokens[1].ids[5] >= 0).sum())
    folder = run / "checkpoints" / "iter_0000006" / "hf"
    folder.mkdir(parents=True)
    Tokenizer(words).save(str(folder / "tokenizer.json"))
    address = f"#run={run_id(run)}&step={STEPS}&cell=3.5"
    for shown in (True, False):
        options = DashboardOptions(folders=[run], port=0, page=page, show_tokens=shown)
        with DashboardServer(options) as server:
            watched = Watched(browser.new_page(), server.url)
            tab = watched.go(address)
            expect(tab.get_by_role("heading", name="Layer 3, expert 5")).to_be_visible()
            if shown:
                expect(tab.get_by_text(HOSTILE, exact=True)).to_be_visible()
                expect(tab.get_by_text("</script>", exact=True)).to_be_visible()
                tab.get_by_role("button", name="over the layer's share").click()
                expect(tab.locator(".bars code")).to_have_count(recorded)
                assert tab.locator(".bars img, .bars script").count() == 0
            else:
                expect(tab.get_by_text("Tokens are hidden")).to_be_visible()
                assert HOSTILE not in tab.content()
            tab.close()
            assert watched.wrong == []


def test_address_of_no_run_says_so(watched: Watched):
    watched.page.goto(watched.origin + "#run=nothing")
    expect(watched.page.get_by_text("This run is not here")).to_be_visible()


def test_page_finds_a_server_again(browser: Browser, runs: Path, page: Path, first: str):
    options = DashboardOptions(folders=[runs], port=0, page=page)
    with DashboardServer(options) as server:
        port = int(server.url.rstrip("/").rpartition(":")[2])
        tab = browser.new_page()
        tab.goto(f"{server.url}#run={first}")
        expect(tab.locator(".state")).to_have_text("ended", timeout=30_000)
    expect(tab.locator(".state")).to_contain_text("server lost", timeout=30_000)
    with DashboardServer(DashboardOptions(folders=[runs], port=port, page=page)):
        expect(tab.locator(".state")).to_have_text("ended", timeout=60_000)
    tab.close()


@pytest.fixture(scope="module")
def report(runs: Path, page: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the run under its hostile name, whose configuration and journal are so, too."""
    run = runs / HOSTILE
    with (run / "config.yaml").open("a") as file:
        file.write(f"# </script></noscript>{HOSTILE}\n")
    note(run, "set_aside", reason=f"</script>{HOSTILE}")
    return write_report(run, tmp_path_factory.mktemp("reports") / "report.html", page=page)


@pytest.fixture
def opened(browser: Browser, report: Path) -> Iterator[Watched]:
    """The report in a browser, opened as a file, without a network."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    context.set_default_timeout(30_000)
    watched = Watched(context.new_page(), report.as_uri())
    yield watched
    context.close()
    assert watched.wrong == []


def test_report_needs_no_server_and_shows_what_the_server_would(
    opened: Watched, server: DashboardServer, first: str
):
    page = opened.go("")
    expect(page.locator(".state")).to_have_text("report")
    expect(page).to_have_title(re.compile(re.escape(HOSTILE)))
    cells = [byte for row in loads(server, first, STEPS) for byte in row]
    colour_of = dict(zip(cells, colours(page, 2, len(cells) // 2), strict=True))
    opened.go("#step=1").reload()
    earlier = [byte for row in loads(server, first, 1) for byte in row]
    painted = colours(page, 2, len(cells) // 2)
    seen = [(byte, it) for byte, it in zip(earlier, painted, strict=True) if byte in colour_of]
    assert seen
    assert all(colour_of[byte] == it for byte, it in seen)


def test_every_view_of_a_report_opens(opened: Watched, report: Path):
    for view in (it for it in VIEWS if it != "tokens"):
        page = opened.go(f"#view={view}&cell=1.0")
        expect(page.locator(".waiting")).to_have_count(0)
        expect(page.get_by_role("alert")).to_have_count(0)
    page = opened.go("#cell=1.0")
    expect(page.get_by_text("Load over fair share", exact=True)).to_be_visible()
    expect(page.get_by_text("Chosen together with")).to_be_visible()
    page = opened.go("#view=summary")
    expect(page.get_by_text("Router entropy (relative to its maximum)")).to_be_visible()
    expect(page.get_by_label("Configuration").last).to_contain_text(HOSTILE)
    assert report.stat().st_size < 2**20


def test_a_report_of_two_runs_compares_them_and_shows_each(
    browser: Browser, runs: Path, page: Path, tmp_path: Path
):
    folders = [runs / "first", runs / HOSTILE]
    path = write_report(folders, tmp_path / "both.html", page=page)
    assert path.stat().st_size < 1_000_000
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    context.set_default_timeout(30_000)
    watched = Watched(context.new_page(), path.as_uri())
    tab = watched.go("")
    for title in ("Loss and balance", "first", HOSTILE, "Difference"):
        expect(tab.get_by_role("heading", name=title, exact=True)).to_be_visible()
    assert tab.locator(".matrix-canvas canvas").count() == 3
    for folder in folders:
        tab = watched.go(f"#run={run_id(folder)}&view=summary")
        expect(tab.get_by_text("Router entropy (relative to its maximum)")).to_be_visible()
        assert tab.title() == f"{folder.name} - MoE Lab"
    context.close()
    assert watched.wrong == []


def test_report_without_scripts_is_its_summary(browser: Browser, report: Path):
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(report.as_uri())
    expect(tab.get_by_role("heading", name="Routers")).to_be_visible()
    expect(tab.get_by_role("heading", name=HOSTILE)).to_be_visible()
    context.close()


@pytest.fixture(scope="module")
def live(runs: Path, moe: Callable[..., Program]) -> Iterator[Path]:
    """A training of two processes, two experts on each, which goes on while it is looked at."""
    words = ("--mock-data", "--train-iters", 100_000, "--save-interval", 10)
    words += ("--num-processes", 2, "--expert-model-parallel-size", 2)
    settings = ("telemetry.sample_interval=2", "checkpoint.keep_last=2")
    training = moe(
        runs, "train", "--config", "test_tiny", *words, "--run-dir", "live", "--set", *settings
    )
    training.wait_for("step 20/", 200)
    for process in training.family():
        process.nice(19)  # it is looked at while it trains, not waited for
    yield runs / "live"
    assert training.process.poll() is None, training.output
    training.kill()


def test_live_run_is_followed_frame_by_frame(watched: Watched, live: Path):
    page = watched.go(f"#run={run_id(live)}")
    expect(page.locator(".state")).to_have_text("live")
    shown = page.locator(".facts dd").first
    seen = set()
    for _ in range(3):
        step = shown.inner_text()
        seen.add(str(colours(page, 2, 4)))
        expect(shown).not_to_have_text(step)
    assert len(seen) > 1  # each step has other loads
    page.keyboard.press(",")
    page.wait_for_function("() => location.hash.includes('step=')")
    step = int(page.get_by_role("slider", name="Step").input_value())
    snapshots = {it.step: it for it in read_routing(live / ROUTING_FILE)}
    cells = load_bytes(snapshots[step].tokens_per_expert).ravel().tolist()
    painted = colours(page, 2, 4)
    warmth = [red - blue for _, (red, _, blue, _) in sorted(zip(cells, painted, strict=True))]
    assert warmth == sorted(warmth)
    assert warmth[0] < 0 < warmth[-1]


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 1280), ("light", 390)])
def test_every_view_of_a_run_that_trains(
    watched: Watched, axe: str, live: Path, theme: Any, width: int, tmp_path: Path
):
    watched.page.emulate_media(color_scheme=theme)
    watched.page.set_viewport_size({"width": width, "height": 844})
    look_at_every_view(watched, run_id(live), axe, tmp_path)
    page = watched.go(f"#run={run_id(live)}&view=ranks")
    expect(page.get_by_text("rank 1")).to_be_visible()
    page = watched.go(f"#run={run_id(live)}&view=flow")
    expect(page.get_by_role("img", name="Paths of tokens through layers 1, 2")).to_be_visible()


@pytest.mark.parametrize("width", [390, 800, 1280])
def test_the_largest_matrix_stays_in_its_panel(
    browser: Browser, page: Path, tmp_path: Path, width: int
) -> None:
    run = write_run(tmp_path / "a", 3, layers=tuple(range(1, 62)), num_experts=256)
    with DashboardServer(DashboardOptions(folders=[run], port=0, page=page)) as server:
        context = browser.new_context(viewport={"width": width, "height": 900})
        shown = Watched(context.new_page(), server.url).go("/#cell=12.85")
        expect(shown.get_by_role("heading", name="Layer 12, expert 85")).to_be_visible()
        expect(shown.locator(".matrix canvas").first).to_be_visible()
        beyond = shown.evaluate(
            """() => {
                const panel = document.querySelector('.matrix').closest('.panel');
                const right = panel.getBoundingClientRect().right;
                const scrolls = getComputedStyle(document.querySelector('.matrix')).overflowX;
                const parts = [...panel.querySelectorAll('.matrix canvas, .row-facts')];
                return scrolls === 'auto' ? 0 :
                    Math.max(...parts.map((it) => it.getBoundingClientRect().right - right));
            }"""
        )
        assert beyond <= 0
        assert shown.evaluate("() => document.documentElement.scrollWidth") <= width
        context.close()
