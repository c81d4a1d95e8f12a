"""A dashboard that a program starts beside itself: a process of its own, which ends with it.

The server must not wait for the program's work, nor the work for the server, so they share nothing
but the folder of the run. In a notebook the page is shown below the cell. It does not know what is
shown.
"""

import atexit
import re
import subprocess
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Self

from moe_megatron.errors import ConfigError

PORT = 8080
"""Of a dashboard, unless another is asked for."""
_COMMAND = __name__.partition(".")[0]
_ADDRESS = re.compile(r"dashboard\s+(?P<url>http://\S+)")
_ENDING_SECONDS = 10.0


class DashboardProcess:
    """A running dashboard.

    Args:
        folders: Folders of runs, or folders around them.
        port: Of the server; 0 for any free one.
        show_tokens: Whether text of training data may be shown.

    Raises:
        ConfigError: The port is taken, or a folder cannot be shown.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        *,
        port: int = 0,
        show_tokens: bool = False,
    ) -> None:
        words = [sys.executable, "-m", _COMMAND, "dashboard", *map(str, folders)]
        words += ["--port", str(port), "--no-open", "--until-eof"]
        words += ["--show-tokens"] if show_tokens else []
        # Its input ends when this process does, however that ends.
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # Ctrl-C in a notebook's cell is not meant for it
        )
        atexit.register(self.close)
        self.url = self._wait()
        """Where a browser finds it."""

    def _wait(self) -> str:
        assert self._process.stdout is not None
        said = []
        for line in self._process.stdout:
            if found := _ADDRESS.match(line):
                return found["url"]
            said.append(line.strip())
        self.close()
        raise ConfigError(" ".join(said).removeprefix("error: ") or "the dashboard did not start.")

    @property
    def runs(self) -> bool:
        """Whether it is there."""
        return self._process.poll() is None

    def go_to(self, place: str) -> None:
        """Let `url` lead to a place of the page, such as "view=cost" or "step=9&cell=2.0"."""
        self.url = f"{self.url.partition('#')[0]}#{place}"

    def close(self) -> None:
        """End it; a second call does nothing."""
        atexit.unregister(self.close)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(_ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<dashboard at {self.url}{'' if self.runs else ', closed'}>"

    def _repr_html_(self) -> str:
        """The page below a notebook's cell."""
        url = escape(self.url, quote=True)
        return (
            f'<iframe src="{url}" width="100%" height="700" style="border:0"></iframe>'
            f'<p><a href="{url}" target="_blank">{url}</a></p>'
        )
