"""The token inspector in a real browser: tokens, ways, keys, errors, pictures, hostile text."""

import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from moe_megatron.config.checkpoint_files import CHECKPOINTS, RELEASE, iteration_dir
from moe_megatron.models import MoEModel
from moe_megatron.testing.written_run import write_run
from moe_megatron.text.training import train_tokenizer
from moe_megatron.webapp.serving import DashboardOptions, DashboardServer
from tests.functional.watched_page import Watched

pytestmark = [pytest.mark.deep, pytest.mark.timeout(600)]

HOSTILE = 'def f():\n    <img src=x onerror=alert(1)> </code><script>alert(2)</script> & "x"'
MODEL = "<b onmouseover=alert(3)>model"
expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model whose tokens are long: words, and whole tags."""
    folder = tmp_path_factory.mktemp("models") / MODEL
    model = MoEModel(hidden_size=32, num_experts=12, num_layers=5, num_attention_heads=4)
    model.tokenizer = train_tokenizer([HOSTILE] * 50, folder.parent / "tokenizer", vocab_size=330)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(
    page: Path, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DashboardServer]:
    """It shows a run whose checkpoint has no tokenizer."""
    folder = tmp_path_factory.mktemp("runs")
    run = write_run(folder / "run", 3)
    (run / CHECKPOINTS).mkdir()
    silent = MoEModel(hidden_size=32, num_experts=4, num_layers=2, num_attention_heads=4)
    silent.save_pretrained(folder.parent / "saved", format="megatron")
    (folder.parent / "saved" / RELEASE).rename(iteration_dir(run / CHECKPOINTS, 3))
    options = DashboardOptions(folders=[folder], models=[model], port=0, page=page)
    with DashboardServer(options) as server:
        yield server


@pytest.fixture
def watched(browser: Browser, server: DashboardServer) -> Iterator[Watched]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    context.set_default_timeout(60_000)
    watched = Watched(context.new_page(), server.url)
    yield watched
    context.close()
    assert watched.wrong == []


def shown(token: str) -> str:
    """A token as the page has it."""
    return token.replace("\n", "\u21b5").replace(" ", "\u00a0")


def asked(watched: Watched, text: str) -> tuple[Page, dict[str, Any]]:
    """The page with the answer of the given model, and the answer."""
    page = watched.go("#view=tokens")
    page.get_by_role("textbox", name="Text").fill(text)
    page.get_by_label("Model").select_option(label=MODEL)
    with page.expect_response("**/api/inspect", timeout=120_000) as answer:
        page.get_by_role("button", name="Show its experts").click()
    expect(page.get_by_role("toolbar", name="Tokens of the text")).to_be_visible()
    return page, answer.value.json()


def test_tokens_have_the_numbers_of_their_experts_and_are_only_text(watched: Watched) -> None:
    page, answer = asked(watched, HOSTILE)
    assert "".join(answer["tokens"]) == HOSTILE
    buttons = page.locator(".tokens button")
    expect(buttons).to_have_count(len(answer["tokens"]))
    for layer in range(len(answer["layers"])):
        if layer:
            page.get_by_role("slider", name="Layer").focus()
            page.keyboard.press("ArrowRight")
        numbers = page.locator(".tokens button small")
        expect(numbers).to_have_text([str(it[0]) for it in answer["experts"][layer]])
    texts = buttons.evaluate_all("all => all.map(it => it.firstChild.textContent)")
    assert texts == [shown(it) for it in answer["tokens"]]
    colours = buttons.evaluate_all("all => all.map(it => getComputedStyle(it).borderBottomColor)")
    by_expert: dict[int, set[str]] = {}
    for expert, colour in zip(answer["experts"][-1], colours, strict=True):
        by_expert.setdefault(expert[0], set()).add(colour)
    assert all(len(colours) == 1 for colours in by_expert.values())
    assert len({colour for (colour,) in by_expert.values()}) == min(7, len(by_expert))
    assert page.locator("main img, main script, main b[onmouseover]").count() == 0


def test_a_token_shows_its_way_with_the_mouse_and_with_keys(watched: Watched) -> None:
    page, answer = asked(watched, HOSTILE)
    page.locator(".tokens button").nth(2).click()
    rows = page.get_by_role("region", name="Way of the token").locator("tbody tr")
    expect(rows).to_have_count(5)

    def expected(token: int) -> list[str]:
        return [
            f"{layer}"
            + "".join(
                f"{expert} {100 * weight:.{1 if weight < 0.0995 else 0}f} %"
                for expert, weight in zip(experts[token], weights[token], strict=True)
            )
            for layer, experts, weights in zip(
                answer["layers"], answer["experts"], answer["weights"], strict=True
            )
        ]

    expect(rows).to_have_text(expected(2))
    circles = page.locator(".way circle")
    expect(circles).to_have_count(5 * 2)
    page.keyboard.press("ArrowRight")
    expect(rows).to_have_text(expected(3))
    page.keyboard.press("End")
    expect(rows).to_have_text(expected(len(answer["tokens"]) - 1))
    page.keyboard.press("Home")
    expect(rows).to_have_text(expected(0))
    page.keyboard.press("Escape")
    expect(rows).to_have_count(0)
    page.get_by_role("textbox", name="Text").fill("f")
    page.get_by_role("textbox", name="Text").press("Control+Enter")
    expect(page.locator(".tokens button")).to_have_count(1)


def test_what_it_shows_can_be_kept(watched: Watched, tmp_path: Path) -> None:
    page, answer = asked(watched, HOSTILE)
    page.locator(".tokens button").first.click()
    for kind in ("SVG", "PNG", "CSV"):
        with page.expect_download() as download:
            page.get_by_role("button", name=kind, exact=True).click()
        download.value.save_as(tmp_path / kind)
    picture = ET.parse(tmp_path / "SVG").getroot()
    texts = [it.text for it in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert all(
        token.replace("\n", "\u21b5").replace(" ", "\u00a0") in texts for token in answer["tokens"]
    )
    assert len(list(picture.iter("{http://www.w3.org/2000/svg}circle"))) == 10
    assert (tmp_path / "PNG").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "CSV").read_bytes().split(b"\r\n")) == 2 + 10 * len(answer["tokens"])


def test_what_goes_wrong_is_said_and_mended(watched: Watched, server: DashboardServer) -> None:
    page = watched.go("#view=tokens")
    page.get_by_role("button", name="Show its experts").click()
    expect(page.get_by_role("alert")).to_contain_text("needs a tokenizer", timeout=120_000)
    page.get_by_role("textbox", name="Text").fill("")
    expect(page.get_by_role("button", name="Show its experts")).to_be_disabled()
    page.get_by_role("textbox", name="Text").fill("f")
    page.get_by_label("Model").select_option(label=MODEL)
    page.get_by_role("button", name="Show its experts").click()
    expect(page.locator(".tokens button")).to_have_count(1)
    expect(page.get_by_role("alert")).to_have_count(0)
    # Chromium says on its console that there was an answer of 400.
    watched.wrong = [it for it in watched.wrong if "status of 400" not in it]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_is_accessible_and_narrow(watched: Watched, frontend: Path, theme: Any) -> None:
    watched.page.emulate_media(color_scheme=theme)
    page, _ = asked(watched, HOSTILE)
    page.locator(".tokens button").first.click()
    page.evaluate((frontend / "node_modules" / "axe-core" / "axe.min.js").read_text())
    answer = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    assert {one["id"]: one["nodes"][0]["html"] for one in answer["violations"]} == {}
    page.set_viewport_size({"width": 360, "height": 740})
    page.wait_for_function("document.documentElement.scrollWidth <= innerWidth")


def test_a_model_needs_no_run(browser: Browser, model: Path, page: Path, tmp_path: Path) -> None:
    with DashboardServer(
        DashboardOptions(folders=[tmp_path], models=[model], port=0, page=page)
    ) as server:
        tab = browser.new_page()
        watched = Watched(tab, server.url)
        tab.goto(server.url)
        expect(tab.get_by_text("No runs here yet")).to_be_visible()
        tab.get_by_role("button", name="Tokens", exact=True).click()
        tab.get_by_role("button", name="Show its experts").click()
        expect(tab.get_by_role("toolbar")).to_be_visible(timeout=120_000)
        tab.close()
        assert watched.wrong == []


def test_a_cell_of_the_run_is_reached_from_a_way(watched: Watched, server: DashboardServer) -> None:
    """An answer as a checkpoint with a tokenizer gives it: its experts are those of the matrix."""
    found = {
        "tokens": ["a"],
        "layers": [1, 2],
        "experts": [[[3, 0]], [[1, 2]]],
        "weights": [[[0.75, 0.25]], [[0.5, 0.5]]],
    }
    page = watched.page
    page.route("**/api/inspect", lambda route: route.fulfill(body=json.dumps(found)))
    watched.go("#view=tokens")
    page.get_by_role("button", name="Show its experts").click()
    page.locator(".tokens button").click()
    page.get_by_role("button", name="Layer 2, expert 1").click()
    expect(page.get_by_role("heading", name="Layer 2, expert 1")).to_be_visible()
