"""The answer to how tokens go from the experts of a layer to those of the next."""

from typing import Any

import numpy as np

from moe_megatron.webapp.asked import Asked
from moe_megatron.webapp.json_values import nullable
from moe_megatron.webapp.run_reader import RunReader
from moe_megatron.webapp.run_samples import summed_flow

_MOST_LINKS = 20_000
"""Of all layers; a picture of them shows fewer."""
_NOTHING = (
    "No sample is on record up to this step: a run takes one each telemetry.sample_interval steps, "
    "100 by default."
)


def flow(run: RunReader, asked: Asked) -> dict[str, Any]:
    """Shares of tokens by expert of a layer and of the next, in the samples of a window."""
    shape = run.windows.shape
    answer: dict[str, Any] = {
        "layers": [] if shape is None else list(shape.layers),
        "links": [],
        "source": "none",
        "note": _NOTHING,
    }
    if shape is None or len(shape.layers) < 2:
        return answer
    samples = run.samples.newest(asked.window(run.span), shape)
    counts = summed_flow([path for path, _ in samples], shape)
    if not counts.any():
        return answer
    most = _MOST_LINKS // len(counts)
    links: list[dict[str, Any]] = []
    shown = 0.0
    for layer, table in zip(shape.layers, counts, strict=False):
        share = table.ravel() / max(1, table.sum())
        order = np.argsort(-share, kind="stable")[:most]
        order = order[share[order] > 0]
        shown += float(share[order].sum()) / len(counts)
        links += [
            {
                "from_layer": layer,
                "from_expert": place // shape.num_experts,
                "to_expert": place % shape.num_experts,
                "share": nullable(share[place]),
            }
            for place in order.tolist()
        ]
    return {**answer, "links": links, "source": "recorded", "note": _note(samples, shown)}


def _note(samples: list[Any], shown: float) -> str:
    heads = [head for _, head in samples]
    steps = ", ".join(str(head.step) for head in heads)
    told = (
        f"Every token of step{'' if len(heads) == 1 else 's'} {steps}: "
        f"{sum(head.tokens for head in heads):,} tokens. The busiest experts by name; a path is as "
        "thick as its share of tokens."
    )
    return told if shown > 0.9995 else f"{told} The smallest {1 - shown:.1%} of paths are left out."
