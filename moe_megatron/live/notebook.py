"""A drawing below a notebook's cell, which is replaced by the next one.

Rich alone prints each state below the one before it, unless widgets are installed. This uses what
every notebook has: an output that was displayed under a name can be displayed anew. It knows
neither what is drawn nor when.
"""

import importlib
import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

WIDTH = 100
_HTML = (
    '<pre style="white-space:pre;overflow-x:auto;line-height:normal;font-family:Menlo,'
    "'DejaVu Sans Mono',consolas,'Courier New',monospace\">{code}</pre>"
)


def display(value: Any, **how: Any) -> Any:
    """Show something below the cell that runs, as if it were the cell's last value."""
    shown: Any = importlib.import_module("IPython.display").display
    return shown(value, **how)


class NotebookDrawing:
    """One place in the output of the cell that draws first.

    Args:
        width: Characters a line may take.
    """

    def __init__(self, width: int = WIDTH) -> None:
        self._width = width
        self._handle: Any = None

    def draw(self, drawing: "RenderableType") -> None:
        """Show this in place of what was drawn before."""
        bundle = self._bundle(drawing)
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)

    def _bundle(self, drawing: "RenderableType") -> dict[str, str]:
        """The drawing as HTML, and as text for what shows no HTML."""
        from rich.console import Console

        console = Console(
            file=io.StringIO(),
            record=True,
            width=self._width,
            force_terminal=True,
            force_jupyter=False,
            color_system="truecolor",
        )
        console.print(drawing)
        text = console.export_text(clear=False)
        html = console.export_html(code_format=_HTML, inline_styles=True)
        return {"text/plain": text, "text/html": html}
