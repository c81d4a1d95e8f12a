"""Draws a model as blocks of parts, from its embedding down to its output.

It knows names, texts and loads, not models.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moe_megatron.drawing.picture import Picture
from moe_megatron.drawing.ratios import ratio_bar, ratio_norm
from moe_megatron.drawing.style import (
    ABSENT,
    COLOURS,
    DIFFERENCES,
    QUIET,
    SMALL,
    page,
    plain,
    width_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable

_TINTS = {
    "embedding": "0.9", "output": "0.9", "attention": "#D6E7F2", "MLP": "#F8E8C8",
    "router": "#F3DCE8", "experts": "#CFEAE1", "shared experts": "#E3F2D5",
}  # fmt: skip
_LINE, _GAP, _ARROW, _EDGE = 0.19, 0.04, 0.15, 0.08
"""Inches: of a line, between parts, between blocks, and around all."""
_COLUMNS = (0.16, 0.93, -0.72, -0.16)
"""Inches from the left edge to names and sizes, and from the right one to the ends of parameters
and operations."""
_CELLS_IN_A_ROW = 64
_CELL, _LAYER = 0.07, 0.05
"""Heights of a row of experts that stand for all layers, and of one of a layer with its loads."""
_LOADS = (0.17, 2.2)
_HEADING = {1: 0.42, 2: 0.28}
"""Inches of the headline, by the columns of a page that a figure spans."""
_BAR = 0.58


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A box."""

    kind: str
    size: str = ""
    parameters: str = ""
    operations: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Equal layers that follow each other; or, without layers, the part before or after them."""

    layers: Sequence[int]
    parts: Sequence[Part]
    experts: int = 0
    chosen: int = 0
    """Experts that a token visits."""
    loads: npt.NDArray[np.float64] | None = None
    """[layers, E], load of each expert over its fair share."""

    @property
    def grid(self) -> float:
        """Height of the picture of the experts, in inches; 0 without any."""
        if self.loads is not None:
            least, most = _LOADS
            two = 2 * least if len(self.loads) > 1 else least  # their first and last have names
            return float(np.clip(_LAYER * len(self.loads), two, most))
        return _CELL * -(-self.experts // _CELLS_IN_A_ROW)

    @property
    def height(self) -> float:
        """In inches."""
        around = _LINE + 2 * _GAP if self.layers else 0.0
        grid = self.grid + 2 * _GAP if self.experts else 0.0
        return around + grid + len(self.parts) * (_LINE + _GAP) - _GAP


def plot_architecture(blocks: Sequence[Block], headline: str, columns: int = 2) -> Picture:
    """Blocks of boxes; below the text of experts one cell for each of them.

    Where loads are known a row of cells is a layer, coloured by the load over the fair share.
    Elsewhere as many cells are dark as experts that a token visits.

    Args:
        blocks: From the input to the output.
        headline: What is seen, at most two lines.
        columns: Of the page that the figure spans, 1 or 2.
    """
    width = width_of(columns)
    told = any(part.parameters for block in blocks for part in block.parts)
    loaded = any(block.loads is not None for block in blocks)
    top = _HEADING[columns] + (_LINE if told else 0.0)
    height = top + sum(it.height + _ARROW for it in blocks) + (_BAR if loaded else 0.0)
    with page(width, height) as figure:
        figure.set_layout_engine("none")  # all places are known, in inches
        panel = figure.add_axes((0, 0, 1, 1))
        panel.set(xlim=(0, width), ylim=(height, 0))
        panel.axis("off")
        panel.text(_EDGE, _EDGE, plain(headline), va="top", wrap=True)
        if told:
            names = Part(kind="", parameters="parameters", operations="FLOP/token")
            _line(panel, names, top - _LINE / 2, width)
        images = []
        for block in blocks:
            images += list(_draw_block(panel, block, top, width))
            top += block.height
            if block is not blocks[-1]:
                panel.annotate(
                    "", (width / 2, top + _ARROW), (width / 2, top),
                    arrowprops={"arrowstyle": "-|>", "color": QUIET, "linewidth": 0.8,
                                "shrinkA": 0, "shrinkB": 0},
                )  # fmt: skip
            top += _ARROW
        if loaded:
            bar = figure.add_axes((0.2, 0.38 / height, 0.6, 0.09 / height))
            ratio_bar(figure, images[0], panel, "load of an expert over its fair share", cax=bar,
                      orientation="horizontal")  # fmt: skip
        panel.set(xlim=(0, width), ylim=(height, 0))
    return Picture(figure)


def _draw_block(
    panel: "Axes", block: Block, top: float, width: float
) -> "Iterator[ScalarMappable]":
    """Boxes of a block; gives the picture of its loads, if it has any."""
    from matplotlib.patches import Rectangle

    edge = _EDGE
    if block.layers:
        size = (width - 2 * edge, block.height)
        panel.add_patch(Rectangle((edge, top), *size, fill=False, edgecolor=QUIET, linewidth=0.8))
        panel.text(_COLUMNS[0], top + _LINE / 2 + _GAP / 2, _name(block.layers),
                   va="center", fontsize=SMALL, color=QUIET)  # fmt: skip
        top, edge = top + _LINE + _GAP / 2, edge + _GAP
    for part in block.parts:
        inside = block.grid + 2 * _GAP if part.kind == "experts" else 0.0
        colour = _TINTS[part.kind]
        panel.add_patch(Rectangle((edge, top), width - 2 * edge, _LINE + inside, facecolor=colour))
        _line(panel, part, top + _LINE / 2, width)
        if inside:
            yield from _draw_experts(panel, block, top + _LINE + _GAP / 2, width)
        top += _LINE + inside + _GAP


def _line(panel: "Axes", part: Part, middle: float, width: float) -> None:
    """The texts of a part, in columns."""
    texts = (part.kind, part.size, part.parameters, part.operations)
    for text, place, side in zip(texts, _COLUMNS, ("left", "left", "right", "right"), strict=True):
        panel.text(place % width, middle, plain(text), ha=side, va="center", fontsize=SMALL)


def _draw_experts(
    panel: "Axes", block: Block, top: float, width: float
) -> "Iterator[ScalarMappable]":
    """A cell for each expert, and where loads are known, a row for each layer."""
    import matplotlib
    from matplotlib.colors import ListedColormap

    left, right = _COLUMNS[1], width + _COLUMNS[3]
    if block.loads is not None:
        rows, number = block.loads.shape
        if rows > 1:
            ends = ((top + 0.05, block.layers[0]), (top + block.grid - 0.05, block.layers[-1]))
            for at, layer in ends:
                panel.text(left - 0.05, at, f"layer {layer}", ha="right", va="center",
                           fontsize=SMALL - 1)  # fmt: skip
        colours = matplotlib.colormaps[DIFFERENCES].with_extremes(bad=ABSENT)
        cells = np.ma.masked_less_equal(block.loads, 0.0)
        line = 0.3 if number <= _CELLS_IN_A_ROW else 0.0
        mesh = panel.pcolormesh(
            np.linspace(left, right, number + 1), np.linspace(top, top + block.grid, rows + 1),
            cells, cmap=colours, norm=ratio_norm(), zorder=3,
            edgecolors="white" if line else "face", linewidth=line,
        )  # fmt: skip
        yield mesh
        return
    rows = -(-block.experts // _CELLS_IN_A_ROW)
    across = -(-block.experts // rows)
    flat = np.full(rows * across, np.nan)
    flat[: block.experts] = 0.0
    flat[np.random.default_rng(0).permutation(block.experts)[: block.chosen]] = 1.0
    panel.pcolormesh(
        np.linspace(left, right, across + 1), np.linspace(top, top + block.grid, rows + 1),
        flat.reshape(rows, across), cmap=ListedColormap(["white", COLOURS[2]]), vmin=0, vmax=1,
        edgecolors="0.6", linewidth=0.3, zorder=3,
    )  # fmt: skip


def _name(layers: Sequence[int]) -> str:
    if len(layers) == 1:
        return f"layer {layers[0]}"
    return f"{len(layers)} layers, {layers[0]} to {layers[-1]}"
