"""The page as one file: no data can get out of its element, and its policy allows no more."""

import base64
import json
import re
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import pytest

from moe_megatron.errors import DataError
from moe_megatron.webapp.built_page import BuiltPage, script_json

HOSTILE = "</script><script>alert(1)</script><!--\"'&\u2028"
SCRIPT = 'const a = "</script><!--";'


class Elements(HTMLParser):
    """The scripts and styles of a file, as a browser finds them, and its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], str]] = []
        self.attributes: list[tuple[str, str | None]] = []
        self._open = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        self._open = tag in ("script", "style")
        if self._open:
            self.found.append((tag, dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self._open:
            tag, attrs, text = self.found[-1]
            self.found[-1] = (tag, attrs, text + data)

    def handle_endtag(self, tag: str) -> None:
        self._open = False


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a build leaves, in small."""
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "style-1.css").write_text("p { color: red }")
    (tmp_path / "report.js").write_text(SCRIPT)
    (tmp_path / "icon.svg").write_text("<svg/>")
    (tmp_path / "licenses.txt").write_text("MIT <x@y.org>")
    return tmp_path


def read(text: str) -> Elements:
    elements = Elements()
    elements.feed(text)
    return elements


def test_data_stays_in_its_element_whatever_it_says(folder: Path) -> None:
    built = BuiltPage.read(folder)
    assert built is not None
    text = built.with_data(HOSTILE, {"runs": [{"name": HOSTILE}]}, "<p>plain</p>")
    elements = read(text)
    kinds = [(tag, attrs.get("type")) for tag, attrs, _ in elements.found]
    assert kinds == [
        ("style", None),
        ("script", "text/plain"),
        ("script", "application/json"),
        ("script", "module"),
    ]
    assert json.loads(elements.found[2][2]) == {"runs": [{"name": HOSTILE}]}
    assert text.count("<script>") == 0


def test_policy_names_what_is_inline_and_allows_nothing_else(folder: Path) -> None:
    built = BuiltPage.read(folder)
    assert built is not None
    elements = read(built.with_data("x", {}, ""))
    policy = next(v or "" for k, v in elements.attributes if k == "content" and "src" in (v or ""))
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    for rule, place in (("script-src", 3), ("style-src", 0)):
        digest = base64.b64encode(sha256(elements.found[place][2].encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert "connect-src" not in rules
    loaded = [v for k, v in elements.attributes if k in ("src", "href")]
    assert all((it or "").startswith("data:") for it in loaded)


def test_page_that_is_not_built_is_none_and_a_broken_one_is_told(
    folder: Path, tmp_path: Path
) -> None:
    assert BuiltPage.read(tmp_path / "nowhere") is None
    (folder / "licenses.txt").unlink()
    with pytest.raises(DataError, match=r"is not whole .*`make ui`"):
        BuiltPage.read(folder)


def test_script_json_cannot_close_its_element() -> None:
    text = script_json({"name": HOSTILE})
    assert not re.search(r"[<\u2028]", text)
    assert json.loads(text) == {"name": HOSTILE}
