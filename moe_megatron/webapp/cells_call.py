"""Bias and partners of all experts at once, in bytes: what a report says of an expert one opens.

    bias    low + byte / 254 * (high - low), with low and high of its layer; 255 where there is none
    share   2 ** ((byte - 255) / 16), so that neighbours differ by 4.4 %; 0 where there is none

For 61 layers of 256 experts a column of bias takes 15.6 KB, and a partner of each expert 46.8 KB.
"""

import base64
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_megatron.telemetry.values.expert_load import Float64Array
from moe_megatron.webapp.asked import Asked
from moe_megatron.webapp.columns import columns
from moe_megatron.webapp.json_values import nested
from moe_megatron.webapp.partners import partners_of
from moe_megatron.webapp.routing_rows import ModelShape
from moe_megatron.webapp.run_reader import RunReader
from moe_megatron.webapp.run_samples import summed_together

MOST_PARTNERS = 8
_MOST_BYTES = 2**20
"""Of bias, whatever is asked for."""
_LEVELS = 254
_MISSING = 255
_TOP, _PER_OCTAVE = 255, 16

UInt8Array = npt.NDArray[np.uint8]


def number_bytes(shape: ModelShape) -> int:
    """Bytes of the number of an expert."""
    return 1 if shape.num_experts <= 256 else 2


def partner_bytes(shape: ModelShape) -> int:
    """Bytes of one partner of each expert."""
    return len(shape.layers) * shape.num_experts * (number_bytes(shape) + 2)


def cells(run: RunReader, asked: Asked) -> dict[str, Any]:
    """Bias of each expert over columns, and its partners in the samples of the window."""
    shape = run.windows.shape
    if shape is None or not run.samples.there():
        return {"steps": [], "low": [], "high": [], "bias": "", "each": 0}
    most = max(1, _MOST_BYTES // (len(shape.layers) * shape.num_experts))
    spans = columns(*asked.window(run.span), min(asked.columns, most))
    bias = run.samples.bias(spans, shape)
    found: dict[str, Any] = {"steps": [] if bias is None else spans, "low": [], "high": []}
    found["bias"] = ""
    if bias is not None:
        low, high, levels = _levels(bias)
        found |= {"low": nested(low), "high": nested(high), "bias": _text(levels)}
    return found | _partners(run, asked, shape)


def _partners(run: RunReader, asked: Asked, shape: ModelShape) -> dict[str, Any]:
    each = min(asked.whole("partners", MOST_PARTNERS, 0), MOST_PARTNERS, shape.num_experts - 1)
    paths = [path for path, _ in run.samples.newest(asked.window(run.span), shape)]
    if not each or not paths:
        return {"each": 0}
    tables = summed_together(paths, shape.layers, shape.num_experts)
    by_layer = [partners_of(table, each) for table in tables]
    number = np.dtype("<u1" if number_bytes(shape) == 1 else "<u2")
    return {
        "each": each,
        "partners": _text(np.stack([it.expert for it in by_layer]).astype(number)),
        "share": _text(_share_bytes(np.stack([it.share for it in by_layer]))),
        "null_share": _text(_share_bytes(np.stack([it.null_share for it in by_layer]))),
    }


def _levels(bias: Float64Array) -> tuple[Float64Array, Float64Array, UInt8Array]:
    """Least and largest bias of each layer [L], and the bytes between them [columns, L, E]."""
    known = np.isfinite(bias)
    low = np.where(known, bias, np.inf).min(axis=(0, 2))
    high = np.where(known, bias, -np.inf).max(axis=(0, 2))
    width = np.where(high > low, high - low, 1.0)
    with np.errstate(invalid="ignore"):
        levels = np.rint((bias - low[:, None]) / width[:, None] * _LEVELS)
    return low, high, np.where(known, levels, _MISSING).astype(np.uint8)


def _share_bytes(share: Float64Array) -> UInt8Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        levels = np.clip(np.rint(_TOP + _PER_OCTAVE * np.log2(share)), 1, _TOP)
    return np.where(share > 0, levels, 0).astype(np.uint8)


def _text(values: npt.NDArray[Any]) -> str:
    return base64.b64encode(values.tobytes()).decode()
