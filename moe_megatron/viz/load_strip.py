"""The expert load heatmap: one strip per MoE layer, steps across, experts down.

A strip of 200 steps and 64 experts has 12,800 cells. That is too many for SVG, so each cell is one
byte, which the page paints on a canvas in the colours of its light or dark mode (`report_page`).
"""

import base64
from collections.abc import Sequence
from html import escape

import numpy as np
import numpy.typing as npt

from moe_megatron.telemetry.values.expert_load import Float64Array
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.viz.svg import script_json

MAX_ROWS = 64
OCTAVES = 3
"""The colour scale spans 2^-3 to 2^3 times the fair share; the fair share is its middle."""
_NO_DATA = 255
_MAX_LEVEL = 254  # even, so that a fair share is exactly the middle, 127


def load_levels(relative: Float64Array) -> npt.NDArray[np.uint8]:
    """Level = round(254 * (log2(r) + 3) / 6), with log2(r) clipped to -3..3; NaN becomes 255.

    So 0 is 1/8 of the fair share or less, 127 the fair share, and 254 is 8 times or more. The scale
    is logarithmic, since twice and half the fair share are equally far from balance.
    """
    with np.errstate(divide="ignore"):  # log2(0) is -inf, which the clip turns into level 0
        octaves = np.clip(np.log2(relative), -OCTAVES, OCTAVES)
    levels = (octaves + OCTAVES) / (2 * OCTAVES) * _MAX_LEVEL
    return np.where(np.isnan(levels), _NO_DATA, np.round(levels)).astype(np.uint8)


def bin_experts(relative: Float64Array, max_rows: int = MAX_ROWS) -> Float64Array:
    """Averages neighbouring experts, [..., E], so that at most `max_rows` rows remain."""
    num_experts = relative.shape[-1]
    if num_experts <= max_rows:
        return relative
    width = -(-num_experts // max_rows)
    starts = np.arange(0, num_experts, width)
    sizes = np.diff(np.append(starts, num_experts))
    binned: Float64Array = np.add.reduceat(relative, starts, axis=-1) / sizes
    return binned


def load_strips(profiles: Sequence[RoutingProfile]) -> list[str]:
    """Draws one `<figure>` for each MoE layer.

    Args:
        profiles: one for each range of steps, in order.
    """
    first = profiles[0]
    relative = np.stack([profile.relative_load for profile in profiles])  # [columns, L, E]
    binned = bin_experts(relative)
    levels = load_levels(binned)
    steps = [[profile.first_step, profile.last_step] for profile in profiles]
    experts_per_row = -(-first.num_experts // MAX_ROWS)
    strips = []
    for index, layer in enumerate(first.layers):
        data = {
            "layer": layer,
            "experts": first.num_experts,
            "experts_per_row": experts_per_row,
            "columns": len(profiles),
            "rows": binned.shape[-1],
            "levels": base64.b64encode(levels[:, index].tobytes()).decode(),
        }
        if index == 0:
            data["steps"] = steps  # the same for all layers: the script reads them here
        last = relative[-1, index]
        label = (
            f"Layer {layer}, load of each expert over the steps, relative to the fair share. "
            f"At the end from {np.min(last):.2f} to {np.max(last):.2f} times the fair share."
        )
        height = min(220, max(84, 11 * binned.shape[-1]))
        strips.append(
            f'<figure class="strip"><figcaption><h3>Layer {layer}</h3></figcaption>'
            f'<div class="strip-body"><div class="experts" aria-hidden="true"><span>0</span>'
            f"<span>{first.num_experts - 1}</span></div>"
            f'<canvas role="img" aria-label="{escape(label)}" style="height:{height}px"></canvas>'
            f'</div><div class="steps" aria-hidden="true"><span>{first.first_step:,}</span>'
            f"<span>{profiles[-1].last_step:,}</span></div>"
            f'<script type="application/json">{script_json(data)}</script></figure>'
        )
    return strips
