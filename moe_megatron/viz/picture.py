"""A picture: shown by a notebook, or saved as a file. It knows matplotlib, not what is drawn."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from moe_megatron.errors import DataError
from moe_megatron.files import user_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DOTS_PER_INCH = 110


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
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH)
        return buffer.getvalue()

    def save(self, path: str | Path) -> Path:
        """Write the picture; the ending of the name says how: .png, .svg or .pdf.

        Raises:
            DataError: The file cannot be written, or has another ending.
        """
        file = user_path(path)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self.figure.savefig(file, dpi=_DOTS_PER_INCH)
        except (OSError, ValueError) as error:
            raise DataError(
                f"the picture cannot be written to {file} ({error}); give a name that ends in "
                ".png, .svg or .pdf, in a folder that you may write to."
            ) from error
        return file
