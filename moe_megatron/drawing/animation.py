"""Writes a figure that changes as a film: a GIF, or an MP4 where ffmpeg is installed.

It knows frames by their number, not what is in them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_megatron.drawing.style import styled
from moe_megatron.errors import BackendUnavailableError, DataError
from moe_megatron.files import explained_writes, publishing, user_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ENDINGS = (".gif", ".mp4")
_DOTS_PER_INCH = 110


def film_path(path: str | Path) -> Path:
    """Where a film is to be written, checked before anything is read or drawn.

    Raises:
        DataError: The name has another ending than .gif or .mp4.
        BackendUnavailableError: It ends in .mp4, and there is no ffmpeg.
    """
    from matplotlib.animation import FFMpegWriter

    file = user_path(path)
    if file.suffix.lower() not in _ENDINGS:
        raise DataError(f"a film is a .gif or an .mp4, not {file.name}; give another name.")
    if file.suffix.lower() == ".mp4" and not FFMpegWriter.isAvailable():
        raise BackendUnavailableError(
            f"{file.name} needs ffmpeg, which is not installed here; install it (`apt-get install "
            "ffmpeg`, `brew install ffmpeg` or `conda install ffmpeg`), or give a name that ends "
            "in .gif, which needs nothing."
        )
    return file


def write_film(
    figure: "Figure", draw: Callable[[int], None], frames: int, file: Path, per_second: int
) -> Path:
    """Write a film, whole or not at all.

    Args:
        figure: With everything that stays; its layout is that of the first frame.
        draw: Changes the figure to a frame, from 0.
        frames: How many.
        file: From `film_path`.
        per_second: Frames per second.

    Raises:
        DataError: The file cannot be written.
    """
    from matplotlib.animation import FFMpegWriter, PillowWriter
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    writer: Any = PillowWriter if file.suffix.lower() == ".gif" else FFMpegWriter
    with explained_writes(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
    with styled(), publishing(file) as partial:
        FigureCanvasAgg(figure)
        draw(0)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # else panels move as their labels change
        film = writer(fps=per_second)
        with film.saving(figure, str(partial), _DOTS_PER_INCH):
            for number in range(frames):
                draw(number)
                film.grab_frame()
    return file
