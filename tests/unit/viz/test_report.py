import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from moe_megatron.telemetry.catalog import registered
from moe_megatron.telemetry.quantity import Quantity
from moe_megatron.viz.report import write_report

MakeRunDir = Callable[..., Path]


class Balance(HTMLParser):
    """Fails on tags that close in the wrong order; collects attributes that could load things."""

    VOID = frozenset({"meta", "br", "img", "link", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def report_of(run_dir: Path) -> str:
    return write_report(run_dir).read_text(encoding="utf-8")


def test_report_is_one_self_contained_balanced_file(make_run_dir: MakeRunDir) -> None:
    html = report_of(make_run_dir())
    parser = Balance()
    parser.feed(html)
    assert parser.open == []
    assert parser.references == []
    assert not re.search(r"https?://|@import|url\(", html)
    assert html.isascii()


def test_report_shows_the_facts(make_run_dir: MakeRunDir) -> None:
    html = report_of(make_run_dir())
    for fact in (
        "<h1>run</h1>",
        "2 MoE layers of 4 experts, top-1",
        "<dd>40<small>of 40 planned</small>",
        "<dd>40,000<small>0 min 20 s of training</small>",
        "<dd>8.000<small>best step 8.000</small>",
        "<dd>5.000<small>step 40</small>",
        "<dd>148.41<small>step 40</small>",
        "<dd>2,000<small>median of the steps</small>",
        "Layer 2",
        "Layer 3",
        "Imbalance (max over mean load)",
        "Router entropy (relative to its maximum)",
        "Load balancing loss (unscaled)",
        "Router z-loss (unscaled)",
    ):
        assert fact in html
    assert "Dropped assignments" not in html


def test_report_lists_dead_experts_or_says_none(make_run_dir: MakeRunDir) -> None:
    html = report_of(make_run_dir(205))
    assert '<td class="bad">1 of 4</td>' in html
    assert "Experts that received no token in steps 106 to 205" in html
    healthy = report_of(make_run_dir(healthy=True, name="fine"))
    assert "None: every expert received tokens in steps 1 to 40" in healthy


def test_report_shows_drops_when_there_are_any(make_run_dir: MakeRunDir) -> None:
    assert "Dropped assignments (share of all)" in report_of(make_run_dir(lost=5))


MARGIN = Quantity(
    name="margin",
    help="Best less second best score.",
    title="Margin of the choice",
    unit="nats",
    note="It grows as routers get sure.",
    derive=lambda sums: sums.means["entropy"],
    ideal=7.5,
)


def test_report_draws_a_registered_quantity_with_its_title_and_note(
    make_run_dir: MakeRunDir,
) -> None:
    run_dir = make_run_dir(margin=0.625)
    with registered(MARGIN):
        html = report_of(run_dir)
    chart = html[html.index("Margin of the choice (nats)") :]
    assert chart.index("It grows as routers get sure.") < chart.index("</figure>")
    assert "layer 3: from 0.625 to 0.625" in chart
    assert ">6</text>" in chart[: chart.index("</figure>")]  # the axis reaches the ideal value
    assert "Margin of the choice" not in report_of(run_dir)


def test_report_draws_a_quantity_that_it_does_not_know_under_its_name(
    make_run_dir: MakeRunDir,
) -> None:
    chart = report_of(make_run_dir(margin=0.625)).partition("<h3>margin</h3>")[2]
    assert "layer 2: from 0.625 to 0.625" in chart[: chart.index("</figure>")]


def test_report_shows_experts_per_token_where_their_number_varies(
    make_run_dir: MakeRunDir,
) -> None:
    assert "Experts per token" not in report_of(make_run_dir())
    html = report_of(make_run_dir(beyond=8, name="varied"))
    chart = html.partition("<h3>Experts per token</h3>")[2]
    assert "The target is 1; dropped assignments are included." in chart
    assert "layer 2: from 1.25 to 1.25" in chart[: chart.index("</figure>")]


def test_report_escapes_name_and_config(make_run_dir: MakeRunDir) -> None:
    run_dir = make_run_dir(name="<b>run & co")
    (run_dir / "config.yaml").write_text("name: </pre><script>alert(1)</script>\n")
    html = report_of(run_dir)
    assert "&lt;b&gt;run &amp; co" in html
    assert "&lt;/pre&gt;&lt;script&gt;alert(1)" in html
    assert "<b>run" not in html
    assert "alert(1)</script>" not in html


def test_report_of_a_large_run_stays_bounded(make_run_dir: MakeRunDir) -> None:
    html = report_of(make_run_dir(402, num_layers=61, num_experts=256))
    assert len(html) < 4_000_000
    assert "<summary>45 more layers</summary>" in html
    assert "Each row is the mean of 4 experts." in html
    assert "Each column is the sum of up to 4 steps." in html


def test_report_of_a_dense_model_leaves_routing_out(make_run_dir: MakeRunDir) -> None:
    run_dir = make_run_dir()
    (run_dir / "routing.jsonl").unlink()
    html = report_of(run_dir)
    assert "no routing was measured" in html
    assert "Expert load" not in html
    assert "Loss (nats per token)" in html


def test_report_of_one_step_works(make_run_dir: MakeRunDir) -> None:
    assert "<circle" in report_of(make_run_dir(1))


def test_report_goes_where_it_is_told(make_run_dir: MakeRunDir, tmp_path: Path) -> None:
    run_dir = make_run_dir()
    assert write_report(run_dir) == run_dir / "report.html"
    other = tmp_path / "new" / "x.html"
    assert write_report(run_dir, other) == other
    assert other.read_text() == (run_dir / "report.html").read_text()


def test_report_script_paints_in_a_real_browser(make_run_dir: MakeRunDir, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs chromium: apt-get install -y chromium")
    probe = (
        "<script>const c = document.querySelector('canvas');"
        "document.title = [c.width, c.height, ...c.getContext('2d').getImageData(39, 1, 1, 1).data]"
        ".join(' ')</script></body>"
    )
    page = tmp_path / "probe.html"
    page.write_text(report_of(make_run_dir()).replace("</body>", probe))
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update",
         f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
    )  # fmt: skip
    # 40 steps, 4 experts; the dead expert has the coldest colour, #1d4e9e
    assert "<title>40 4 29 78 158 255</title>" in done.stdout
