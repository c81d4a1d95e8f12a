"""The page in Chromium, which counts what it is sent and what it draws.

A hook in the page counts frames of the WebSocket and pictures of the matrix that differ from the
one before; processor time of the main thread is Chromium's own account. It does not know what is
shown.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from playwright.sync_api import CDPSession, Page, sync_playwright

_COUNTING = """
const seen = (window.seen = {received: 0, drawn: 0, tasks: [], picture: 0, tell: null});
const Socket = window.WebSocket;
window.WebSocket = class extends Socket {
  constructor(...words) {
    super(...words);
    this.addEventListener("message", ({data}) => {
      if (typeof data !== "string") seen.received++;
    });
  }
};
const put = CanvasRenderingContext2D.prototype.putImageData;
CanvasRenderingContext2D.prototype.putImageData = function (image, ...words) {
  put.call(this, image, ...words);
  if (image.width !== COLUMNS || image.height !== ROWS) return;
  let picture = 0;
  for (const word of new Uint32Array(image.data.buffer)) picture = (31 * picture + word) | 0;
  if (picture === seen.picture) return;
  seen.picture = picture;
  seen.drawn++;
  seen.tell?.();
};
new PerformanceObserver((found) => seen.tasks.push(...found.getEntries().map((it) => it.duration)))
  .observe({type: "longtask"});
"""
_REST_MS = 2000
_DRAWN = "() => document.querySelector('.matrix-canvas canvas')?.width > 300"
_JUMP = """async (step) => {
  const bar = document.querySelector(".scrub input");
  const set = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set;
  const began = performance.now();
  const drawn = new Promise((resolve, reject) => {
    seen.tell = () => resolve(performance.now() - began);
    setTimeout(() => reject(new Error("nothing was drawn in 30 s")), 30_000);
  });
  set.call(bar, step);
  bar.dispatchEvent(new Event("input", {bubbles: true}));
  return await drawn;
}"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a page has done so far, or between two looks."""

    received: int
    """Frames of the WebSocket."""
    drawn: int
    """Pictures of the matrix, each other than the one before."""
    long_tasks: int
    """Times that the main thread was busy for over 50 ms."""
    longest: float
    """The longest of these since the page was at rest, in seconds."""
    main_thread: float
    """Processor seconds of the main thread."""

    def since(self, before: "Seen") -> "Seen":
        """What came after an earlier look."""
        return Seen(
            received=self.received - before.received,
            drawn=self.drawn - before.drawn,
            long_tasks=self.long_tasks - before.long_tasks,
            longest=self.longest,
            main_thread=self.main_thread - before.main_thread,
        )


class SeenPage:
    """An open page."""

    def __init__(self, page: Page, session: CDPSession) -> None:
        self.page = page
        self._session = session

    def go(self, address: str) -> None:
        """Open a place of the page anew, and wait until it is drawn and at rest."""
        self.page.goto("about:blank")
        self.page.goto(address)
        self.page.wait_for_function(_DRAWN, timeout=120_000)
        self.page.wait_for_timeout(_REST_MS)
        self.page.evaluate("window.seen.tasks.length = 0")

    def look(self) -> Seen:
        """What it has done since it was opened."""
        told = self._session.send("Performance.getMetrics")["metrics"]
        found = self.page.evaluate("({...seen, tell: null})")
        return Seen(
            received=found["received"],
            drawn=found["drawn"],
            long_tasks=len(found["tasks"]),
            longest=max(found["tasks"], default=0.0) / 1e3,
            main_thread=next(it["value"] for it in told if it["name"] == "TaskDuration"),
        )

    def jump(self, step: int) -> float:
        """Move the bar of time to a step; returns the seconds until it is on the canvas."""
        return float(self.page.evaluate(_JUMP, step)) / 1e3


@contextmanager
def seen_page(layers: int, experts: int) -> Iterator[SeenPage]:
    """Chromium with a page that counts pictures of this many layers and experts.

    Raises:
        SystemExit: There is no Chromium.
    """
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        raise SystemExit("error: chromium is needed: apt-get install -y chromium")
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=program, args=options)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        size = {"COLUMNS": experts, "ROWS": layers}
        counting = _COUNTING
        for name, value in size.items():
            counting = counting.replace(name, str(value))
        page.add_init_script(f"(() => {{{counting}}})()")
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})
        yield SeenPage(page, session)
        browser.close()
