"""A film of how the load of experts changes over a training. It knows counts, not runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moe_megatron.drawing.animation import write_film
from moe_megatron.drawing.ratios import ratio_bar, ratio_norm
from moe_megatron.drawing.style import ABSENT, DIFFERENCES, QUIET, SMALL, TWO_COLUMNS, page

_INCHES_PER_ROW = 0.15
_HEIGHTS = (1.4, 8.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadFrame:
    """The routing of a range of steps."""

    first_step: int
    last_step: int
    relative_load: npt.NDArray[np.float64]
    """[L, E], load of each expert over its fair share; NaN where nothing was routed."""


def film_load(frames: Sequence[LoadFrame], layers: Sequence[int], file: Path, rate: int) -> Path:
    """Layers down, experts across: load over the fair share as colour, white where it is fair.

    Below, the load of the fullest expert over the mean, mean and worst of the layers, with a mark
    at the steps that are shown. Experts that no token reached are grey.

    Args:
        frames: In the order of their steps.
        layers: Numbers of the L layers.
        file: From `film_path`.
        rate: Frames per second.

    Raises:
        DataError: The file cannot be written.
    """
    height = float(np.clip(_INCHES_PER_ROW * len(layers), *_HEIGHTS))
    at = [(it.first_step + it.last_step) / 2 for it in frames]
    largest = np.array([it.relative_load.max(axis=1) for it in frames])  # [frames, L]
    with page(TWO_COLUMNS, height + 1.9) as figure:
        matrix, strip = figure.subplots(2, 1, height_ratios=[height, 0.9])
        matrix.set_facecolor(ABSENT)
        image = matrix.imshow(_shown(frames[0]), cmap=DIFFERENCES, norm=ratio_norm())
        matrix.set_yticks(range(len(layers)), [str(it) for it in layers], fontsize=SMALL)
        matrix.set_ylabel("layer")
        matrix.set_xlabel("expert")
        matrix.xaxis.get_major_locator().set_params(integer=True)
        ratio_bar(figure, image, matrix, "load / fair share", pad=0.01)
        strip.plot(at, largest.max(axis=1), label="worst layer")
        strip.plot(at, largest.mean(axis=1), label="mean of the layers")
        strip.set_ylim(bottom=1.0)
        strip.set_ylabel("fullest\nexpert / mean")
        strip.set_xlabel("step")
        strip.legend(ncols=2)
        mark = strip.axvline(at[0], color=QUIET, linewidth=1.5)

    def draw(number: int) -> None:
        frame = frames[number]
        image.set_data(_shown(frame))
        mark.set_xdata([at[number], at[number]])
        idle = int((frame.relative_load == 0).sum())
        steps = f"Steps {frame.first_step} to {frame.last_step}"
        if frame.first_step == frame.last_step:
            steps = f"Step {frame.first_step}"
        none = f"; {idle} had no token (grey)" if idle else ""
        matrix.set_title(f"{steps}: load of each expert{none}")

    return write_film(figure, draw, len(frames), file, rate)


def _shown(frame: LoadFrame) -> npt.NDArray[np.float64]:
    """The matrix with NaN for experts without load, which a logarithm has no colour for."""
    return np.where(frame.relative_load > 0, frame.relative_load, np.nan)
