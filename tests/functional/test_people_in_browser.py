"""Who may look at the page and ask a run, in a real browser: the form, the session, the buttons."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from moe_megatron.config.checkpoint_files import folders_by_step
from moe_megatron.errors import AGAIN
from moe_megatron.testing.programs import Program
from moe_megatron.testing.written_run import write_run
from moe_megatron.webapp.access.audit import Audit
from moe_megatron.webapp.access.database import open_database
from moe_megatron.webapp.access.tokens import AccessTokens
from moe_megatron.webapp.serving import DashboardOptions, DashboardServer

pytestmark = [pytest.mark.deep, pytest.mark.timeout(600)]

expect.set_options(timeout=30_000)


@pytest.fixture
def tokens(tmp_path: Path) -> AccessTokens:
    return AccessTokens(open_database(str(tmp_path / "access.db"), create=True))


def tokens_used(tokens: AccessTokens) -> list[tuple[str, str]]:
    """What was asked, and the answers."""
    found = Audit(tokens._engine).newest(50)
    return [(it.what, it.answer) for it in found if "log" not in it.what]


@pytest.fixture
def token(tokens: AccessTokens) -> str:
    return tokens.add("ada", "viewer")


@pytest.fixture
def server(tmp_path: Path, page: Path, token: str) -> Iterator[DashboardServer]:
    write_run(tmp_path / "runs" / "a", 30)
    database = str(tmp_path / "access.db")
    options = DashboardOptions(folders=[tmp_path / "runs"], port=0, page=page, database=database)
    with DashboardServer(options) as server:
        yield server


def test_page_asks_for_a_token_shows_the_run_live_and_forgets(
    browser: Browser, server: DashboardServer, token: str, tokens: AccessTokens
) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(f"{server.url}#view=training")
    field = page.get_by_label("Token", exact=True)
    expect(field).to_be_focused()
    expect(page.get_by_text("Loss")).to_have_count(0)
    field.fill("not-a-token")
    field.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("this token is nobody's")
    field.fill(token)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_text("Loss").first).to_be_visible()
    expect(page.locator(".state.running, .state.stopped, .state.ended")).to_be_visible()
    # The session is out of reach of scripts, and the address and the storage hold no secret.
    held = page.evaluate("document.cookie + location.href + JSON.stringify({...localStorage})")
    assert token not in held
    assert "moe_megatron_" not in held
    [cookie] = context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    page.reload()
    expect(page.get_by_role("button", name="Log out ada")).to_be_visible()
    page.get_by_role("button", name="Log out ada").click()
    expect(page.get_by_label("Token", exact=True)).to_be_visible()
    assert wrong == []
    # A token that is taken away closes a page that is open.
    page.get_by_label("Token", exact=True).fill(token)
    page.get_by_label("Token", exact=True).press("Enter")
    expect(page.get_by_role("button", name="Log out ada")).to_be_visible()
    tokens.remove("ada")
    expect(page.get_by_label("Token", exact=True)).to_be_visible(timeout=20_000)
    context.close()


def test_an_operator_asks_a_run_that_trains_and_a_viewer_is_not_offered_to(
    browser: Browser, moe: Callable[..., Program], tmp_path: Path, page: Path, tokens: AccessTokens
) -> None:
    words = ("--mock-data", "--train-iters", 100_000, "--save-interval", 100_000)
    words += ("--num-processes", 2, "--run-dir", "runs/live")
    training = moe(tmp_path, "train", "--config", "test_tiny", *words)
    grace, ada = tokens.add("grace", "operator"), tokens.add("ada", "viewer")
    database = str(tmp_path / "access.db")
    options = DashboardOptions(folders=[tmp_path / "runs"], port=0, page=page, database=database)
    with DashboardServer(options) as server:
        shown = {}
        for name, token in (("ada", ada), ("grace", grace)):
            shown[name] = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
            shown[name].set_default_timeout(120_000)
            shown[name].goto(f"{server.url}#view=training")
            shown[name].get_by_label("Token", exact=True).fill(token)
            shown[name].get_by_label("Token", exact=True).press("Enter")
            expect(shown[name].locator(".state.running")).to_be_visible(timeout=120_000)
            first = shown[name].locator(".events b", has_text="first step")
            expect(first).to_be_visible(timeout=120_000)
        asks = shown["grace"]
        asks.get_by_role("button", name="Write a checkpoint").click()
        expect(asks.get_by_role("button", name="No")).to_be_focused()
        asks.get_by_role("button", name="No").click()
        assert tokens_used(tokens) == []
        asks.get_by_role("button", name="Write a checkpoint").click()
        asks.get_by_role("button", name="Yes, write one").click()
        expect(asks.get_by_text("Asked for a checkpoint")).to_be_visible()
        expect(asks.locator(".events b", has_text="saved").first).to_be_visible(timeout=60_000)
        [step] = folders_by_step(tmp_path / "runs" / "live" / "checkpoints")
        assert step % 1000
        expect(shown["ada"].get_by_role("button", name="Stop the run")).to_have_count(0)
        asks.get_by_role("button", name="Stop the run").click()
        asks.get_by_role("button", name="Yes, stop it").click()
        assert training.end(120) == AGAIN, training.output
        expect(asks.get_by_role("button", name="Stop the run")).to_have_count(0, timeout=30_000)
        assert tokens_used(tokens) == [("checkpoint", "202 asked"), ("stop", "202 asked")]
