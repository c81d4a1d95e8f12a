"""Takes a picture of each dashboard in headless Chromium, from the bundle that `npm` has built."""

import io
import shutil
from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from playwright.sync_api import ConsoleMessage, Page, Route, sync_playwright

from moe_megatron.dashboards.panels import Json

_WIDTH, _KEPT_WIDTH, _QUALITY = 1600, 1280, 45
_ADDRESS = "http://drawing.invalid/"
"""Grafana's parts keep settings for an address; nothing is asked of a network."""
_PAGE = "<!doctype html><meta charset='utf-8'><body style='margin:0'><div id='page'></div></body>"
_SETTLED = 2000
"""Milliseconds after the panels stand, in which charts are drawn into them."""
_ICON = "Failed to load resource"
"""What Chromium says of icons, which only a Grafana server has."""


def take_pictures(bundle: Path, boards: Mapping[str, Json], folder: Path) -> None:
    """Write a picture, in the format WebP, for each board.

    Args:
        bundle: The folder `built`.
        boards: What `recording.board` returned, by the names of the files.
        folder: Where they are written.

    Raises:
        AssertionError: A panel could not be drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for name, board in boards.items():
            page = chromium.new_page(viewport={"width": _WIDTH, "height": 1000})
            _write(_drawn(page, bundle, board), folder / f"{name}.webp")
            page.close()
        chromium.close()


def _drawn(page: Page, bundle: Path, board: Json) -> bytes:
    faults: list[str] = []

    def heard(message: ConsoleMessage) -> None:
        if message.type == "error" and _ICON not in message.text:
            faults.append(message.text)

    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", heard)
    page.route("**/*", _serve)
    page.goto(_ADDRESS)
    page.add_style_tag(path=bundle / "main.css")
    page.add_script_tag(path=bundle / "main.js")
    page.evaluate("(board) => drawDashboard(board)", board)
    page.wait_for_selector("section")
    page.wait_for_timeout(_SETTLED)
    assert not faults, f"{board['title']}: {faults}"
    return page.locator("#page").screenshot()


def _serve(route: Route) -> None:
    if route.request.url == _ADDRESS:
        route.fulfill(body=_PAGE, content_type="text/html")
    else:
        route.abort()


def _write(png: bytes, path: Path) -> None:
    """Write a picture small enough for a repository, below 150 KB."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    height = round(picture.height * _KEPT_WIDTH / picture.width)
    picture = picture.resize((_KEPT_WIDTH, height), Image.Resampling.LANCZOS)
    picture.save(path, quality=_QUALITY, method=6)
