"""The built page: where it is, and as one file with data in it, which opens without a server.

Everything is inline. A policy in the file allows this one script by its hash and no connection, and
no text in the data can end the element that holds it. It does not know what the data is.
"""

import base64
import json
import re
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import Any

from moe_megatron.errors import DataError

PAGE = Path(__file__).parent / "page"
"""The built page; not in git."""
_SCRIPT = "report.js"
"""The page as one script: a file cannot fetch others beside it."""
_ENDS_SCRIPT = re.compile(r"<(/script|!--)", re.IGNORECASE)

_FILE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="content-security-policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="data:image/svg+xml;base64,{icon}">
<style>{style}</style>
</head>
<body>
<div id="page"></div>
<noscript>{plain}</noscript>
<script type="text/plain" id="licenses">{licenses}</script>
<script type="application/json" id="run-data">{data}</script>
<script type="module">{script}</script>
</body>
</html>
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltPage:
    """What `make ui` makes, as far as one file needs it."""

    script: str
    style: str
    icon: str
    licenses: str

    @classmethod
    def read(cls, folder: Path) -> "BuiltPage | None":
        """The page; None where it is not built.

        Raises:
            DataError: It is built in part.
        """
        if not (folder / _SCRIPT).is_file():
            return None
        try:
            (style,) = (folder / "assets").glob("*.css")
            return cls(
                script=(folder / _SCRIPT).read_text("utf-8"),
                style=style.read_text("utf-8"),
                icon=(folder / "icon.svg").read_text("utf-8"),
                licenses=(folder / "licenses.txt").read_text("utf-8"),
            )
        except (OSError, ValueError) as error:
            raise DataError(
                f"the page in {folder} is not whole ({error}); build it again with `make ui`, or "
                "install the package again."
            ) from error

    def with_data(self, title: str, data: dict[str, Any], plain: str) -> str:
        """The file.

        Args:
            title: Of the page.
            data: What the page's data source reads.
            plain: HTML that is shown where scripts are not allowed.
        """
        script = _ENDS_SCRIPT.sub(r"<\\\1", self.script)
        return _FILE.format(
            policy=(
                f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(self.style)}; "
                "img-src data: blob:; base-uri 'none'; form-action 'none'"
            ),
            title=escape(title),
            icon=base64.b64encode(self.icon.encode()).decode(),
            style=self.style,
            plain=plain,
            licenses=escape(self.licenses),
            data=script_json(data),
            script=script,
        )


def _hash(text: str) -> str:
    """How a policy names an inline element."""
    return f"'sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}'"


def script_json(data: object) -> str:
    """JSON that is safe inside a `<script>` element, whatever strings it contains."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", r"\u003c")
