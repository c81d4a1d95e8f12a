"""Draws which domain gives each expert its work, and what speaks for it.

It knows shares, names and statistics, not models.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from moe_megatron.drawing.picture import Picture
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
    from matplotlib.figure import SubFigure

Float64Array = npt.NDArray[np.float64]

_INCHES_PER_ROW = 0.17
_HEIGHTS = (1.7, 8.0)
_BELOW = 2.9
"""Height of the panels of evidence, in inches."""
_MAX_TICKS = 8
"""Of all domains together, for each column of a page."""
_SURE = 3.0
"""Standard errors that a share must be from the fair one to be drawn."""


class _Evidence(Protocol):
    """What speaks for domains; see `analytics.evidence`."""

    @property
    def measured(self) -> Float64Array: ...
    @property
    def interval(self) -> Float64Array: ...
    @property
    def chance(self) -> Float64Array: ...
    @property
    def by_token(self) -> Float64Array: ...
    @property
    def predicted(self) -> Float64Array: ...
    @property
    def predicted_by_load(self) -> Float64Array: ...
    @property
    def share_error(self) -> Float64Array: ...
    @property
    def found(self) -> tuple[str, ...]: ...


def plot_domains(
    shares: Float64Array,
    layers: Sequence[int],
    domains: Sequence[str],
    evidence: _Evidence,
    columns: int = 2,
) -> Picture:
    """Above, a panel per domain: experts across, layers down, the domain's share as colour.

    White is the share that all domains have where experts ignore them, 1 / D, and every share that
    is less than three standard errors from it. An expert without load is grey. Below, what the
    whole layer shows: how much the routing of domains differs, how much it would if token ids alone
    decided, and how much of the routing these predict.

    Args:
        shares: [L, D, E], each domain's share of an expert's load; NaN for one without load.
        layers: Numbers of the L layers.
        domains: Names of the D domains.
        evidence: Statistics of the layers.
        columns: Of the page that the figure spans, 1 or 2.
    """
    height = float(np.clip(0.7 + _INCHES_PER_ROW * len(layers), *_HEIGHTS))
    fair = 1 / len(domains)
    sure = np.abs(shares - fair) >= _SURE * evidence.share_error
    drawn = np.where(np.isnan(shares) | sure, shares, fair)
    below = _BELOW if columns == 2 else 2 * _BELOW
    with page(width_of(columns), height + below) as figure:
        rows = figure.subfigures(2, 1, squeeze=False, height_ratios=[height, below])
        _matrices(rows[0, 0], drawn, layers, domains, _MAX_TICKS * columns)
        shape = (1, 2) if columns == 2 else (2, 1)
        difference, prediction = rows[1, 0].subplots(*shape, sharex=columns == 2)
        _difference(difference, layers, evidence)
        prediction.plot(layers, evidence.predicted, "o-", label="the token's id")
        prediction.plot(layers, evidence.predicted_by_load, "s-", color=QUIET, label="load alone")
        prediction.set_ylim(0, 1)
        prediction.set_ylabel("share of assignments")
        prediction.set_title("Choices in other documents, predicted by")
        for panel in (difference, prediction):
            panel.set_xlabel("layer")
            panel.xaxis.get_major_locator().set_params(integer=True)
            panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22))
        figure.suptitle(_title(layers, evidence.found), x=0.01, ha="left", wrap=True)
    return Picture(figure)


def _matrices(
    figure: "SubFigure",
    shares: Float64Array,
    layers: Sequence[int],
    domains: Sequence[str],
    most_ticks: int,
) -> None:
    from matplotlib.colors import TwoSlopeNorm

    _, num_domains, num_experts = shares.shape
    scale = TwoSlopeNorm(vcenter=1 / num_domains, vmin=0.0, vmax=1.0)  # two domains or more
    panels = figure.subplots(1, num_domains, sharey=True, squeeze=False)[0]
    ticks = range(0, num_experts, -(-num_experts * num_domains // most_ticks))
    for number, panel in enumerate(panels):
        panel.set_facecolor(ABSENT)
        image = panel.imshow(shares[:, number], norm=scale, cmap=DIFFERENCES)
        panel.set_title(plain(domains[number]))
        panel.set_xticks(list(ticks), [str(it) for it in ticks])
        panel.set_xlabel("expert")
    panels[0].set_yticks(range(len(layers)), [str(it) for it in layers], fontsize=SMALL)
    panels[0].set_ylabel("layer")
    figure.colorbar(image, ax=list(panels), label="share of the expert's work", pad=0.01)


def _difference(panel: "Axes", layers: Sequence[int], evidence: _Evidence) -> None:
    low, high = evidence.interval
    panel.errorbar(
        layers, evidence.measured, [evidence.measured - low, high - evidence.measured], fmt="o",
        capsize=2, label="measured, 95 % over documents",
    )  # fmt: skip
    panel.plot(
        layers, evidence.by_token, "D", markerfacecolor="none", color=COLOURS[5],
        label="if token ids alone decided",
    )  # fmt: skip
    panel.plot(layers, evidence.chance, "_", color=QUIET, markersize=8,
               label="95 % of shuffled labels are below")  # fmt: skip
    panel.set_ylabel("normalised information")
    panel.locator_params(axis="y", nbins=5)  # more digits would not be there when it is laid out
    panel.set_title("How much the routing of domains differs")


def _title(layers: Sequence[int], found: Sequence[str]) -> str:
    """What the figure may claim, in one sentence."""
    of_domain = [layer for layer, it in zip(layers, found, strict=True) if it == "domain"]
    if of_domain:
        where = "all layers" if len(of_domain) == len(layers) else _named(of_domain)
        return f"Experts differ by domain beyond what token ids explain, in {where}"
    if "token" in found:
        return "Experts differ between domains no more than token ids explain"
    return "Experts differ between domains no more than by chance"


def _named(layers: Sequence[int]) -> str:
    word = "layer" if len(layers) == 1 else "layers"
    if len(layers) > 8:
        return f"{len(layers)} {word}"
    return f"{word} {', '.join(map(str, layers))}"
