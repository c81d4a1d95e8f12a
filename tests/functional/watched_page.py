"""A page of the dashboard in a browser, and what it did that it must not."""

from dataclasses import dataclass, field
from typing import Any

from playwright.sync_api import Page, expect


@dataclass
class Watched:
    """A page, and what it did that it must not."""

    page: Page
    origin: str
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("dialog", lambda dialog: self.wrong.append(dialog.message))
        self.page.on("console", self._heard)
        self.page.on("request", self._asked)

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.wrong.append(message.text)

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.origin, "data:", "blob:")):
            self.wrong.append(request.url)

    def go(self, address: str) -> Page:
        self.page.goto(self.origin + address)
        expect(self.page.locator("main .panel").first).to_be_visible()
        return self.page
