"""Draws the tokens that prefer each expert most. It knows texts and shares, not models."""

from collections.abc import Sequence

import numpy as np

from moe_megatron.drawing.picture import Picture
from moe_megatron.drawing.style import ABSENT, SMALL, page, plain, width_of

_INCHES_PER_ROW = 0.17
_SPACE = "\u00b7"
"""What a space is drawn as, a dot in the middle of the line."""
_ROOM = {1: 3}
"""Tokens that fit beside each other, where that is limited."""
_LONGEST = 14
"""Characters of a token that are shown."""


def plot_vocabulary(
    tokens: Sequence[Sequence[tuple[str, float]]],
    experts: Sequence[int],
    layer: int,
    average: float,
    columns: int = 2,
) -> Picture:
    """A row for each expert: tokens, coloured by the part of their occurrences that went there.

    On one column of a page there is room for three tokens.

    Args:
        tokens: Of each expert its tokens and their shares, the largest first.
        experts: Numbers of the experts.
        layer: Number of the layer.
        average: Share that a token has where experts ignore tokens, k / E.
        columns: Of the page that the figure spans, 1 or 2.
    """
    tokens = [found[: _ROOM.get(columns)] for found in tokens]
    most = max(map(len, tokens))
    shares = np.full((len(experts), most), np.nan)
    for row, found in enumerate(tokens):
        shares[row, : len(found)] = [share for _, share in found]
    with page(width_of(columns), 0.8 + _INCHES_PER_ROW * len(experts)) as figure:
        panel = figure.subplots()
        panel.set_facecolor(ABSENT)
        image = panel.imshow(shares, vmin=0, vmax=1)
        for row, found in enumerate(tokens):
            for column, (text, share) in enumerate(found):
                text = text.replace(" ", _SPACE)
                shown = plain(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}...")
                panel.text(column, row, shown, ha="center", va="center", fontsize=SMALL,
                           color="black" if share > 0.6 else "white")  # fmt: skip
        panel.set_xticks(range(most), [str(it + 1) for it in range(most)])
        panel.set_yticks(range(len(experts)), [str(it) for it in experts])
        panel.set_xlabel("rank")
        panel.set_ylabel("expert")
        figure.colorbar(image, ax=panel, pad=0.01, label="part of its occurrences")
        panel.set_title(
            f"Layer {layer}: tokens that go most to each expert (an average token: {average:.0%})",
            wrap=True,
        )
    return Picture(figure)
