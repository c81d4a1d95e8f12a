"""A picture: shown by a notebook, or saved as a file. It knows matplotlib, not what is drawn."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from moe_megatron.drawing.style import DOTS_PER_INCH, styled
from moe_megatron.errors import DataError
from moe_megatron.files import explained_writes, replace_file, user_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ON_SCREEN = 110
"""Dots per inch below a notebook's cell."""
_UNDATED = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
"""Kinds of files, and what keeps the date out of them: equal pictures are equal files."""


class Picture:
    """A finished drawing; the last value of a notebook's cell, it is shown.

    Attributes:
        figure: matplotlib's figure, for those who want to change it.
    """

    def __init__(self, figure: "Figure") -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        self.figure = figure
        FigureCanvasAgg(figure)  # neither a display nor pyplot's global state

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        return self._drawn("png", _ON_SCREEN)

    def save(self, path: str | Path) -> Path:
        """Write the picture, whole or not at all; the ending of the name says how.

        Args:
            path: A name that ends in .png (200 dots per inch), .svg (text stays text) or .pdf
                (fonts are embedded). Folders that do not exist are made.

        Raises:
            DataError: The file cannot be written, or has another ending.
        """
        file = user_path(path)
        kind = file.suffix.lower().removeprefix(".")
        if kind not in _UNDATED:
            raise DataError(
                f"the picture cannot be written to {file} ('{file.suffix}' is no kind of picture); "
                "give a name that ends in .png, .svg or .pdf."
            )
        with explained_writes(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            replace_file(file, [self._drawn(kind)])
        return file

    def _drawn(self, kind: str, dots_per_inch: int = DOTS_PER_INCH) -> bytes:
        buffer = io.BytesIO()
        with styled():
            self.figure.savefig(buffer, format=kind, dpi=dots_per_inch, metadata=_UNDATED[kind])
        return buffer.getvalue()


def finished(picture: Picture, save_to: str | Path | None) -> Picture:
    """The picture, written to a file if one is given.

    Raises:
        DataError: The file cannot be written.
    """
    if save_to is not None:
        picture.save(save_to)
    return picture
