"""How a quantized matrix looks in files: the tensors of it, with types and shapes.

Tables, which the audit compares headers with; nothing here reads a file.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

WORD = 32
"""Bits of a whole number that holds several codes."""
_SCALES = frozenset({"F16", "BF16", "F32"})


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor of a matrix [rows, columns]."""

    types: frozenset[str]
    shape: Callable[[int, int, int, int], tuple[int, ...] | None]
    """From rows, columns, bits and group size; None: any."""
    needed: bool = True


@dataclass(frozen=True, slots=True)
class Layout:
    """A format of files."""

    methods: frozenset[str]
    """What `quant_method` of its `quantization_config` may be."""
    parts: Mapping[str, Part]
    """By the ends of their names, after that of the module."""


def _groups(columns: int, group: int) -> int:
    return columns // group


GPTQ = Layout(
    frozenset({"gptq"}),
    {
        ".qweight": Part(frozenset({"I32"}), lambda r, c, b, g: (c * b // WORD, r)),
        ".scales": Part(_SCALES, lambda r, c, b, g: (_groups(c, g), r)),
        ".qzeros": Part(frozenset({"I32"}), lambda r, c, b, g: (_groups(c, g), r * b // WORD)),
        ".g_idx": Part(frozenset({"I32"}), lambda r, c, b, g: (c,)),
    },
)
"""GPTQ's own, as GPTQModel writes it: codes of a column one after the other."""

PACK_QUANTIZED = Layout(
    frozenset({"compressed-tensors"}),
    {
        ".weight_packed": Part(frozenset({"I32"}), lambda r, c, b, g: (r, c * b // WORD)),
        ".weight_scale": Part(_SCALES, lambda r, c, b, g: (r, _groups(c, g))),
        ".weight_zero_point": Part(
            frozenset({"I32"}), lambda r, c, b, g: (r * b // WORD, _groups(c, g)), needed=False
        ),
        ".weight_shape": Part(frozenset({"I64", "I32"}), lambda r, c, b, g: (2,), needed=False),
    },
)
"""compressed-tensors, as llm-compressor writes it."""

MODELOPT_FP8 = Layout(
    frozenset({"modelopt"}),
    {
        ".weight": Part(frozenset({"F8_E4M3"}), lambda r, c, b, g: (r, c)),
        ".weight_scale": Part(frozenset({"F32"}), lambda r, c, b, g: None),
        ".input_scale": Part(frozenset({"F32"}), lambda r, c, b, g: None),
    },
)
"""ModelOpt's 8-bit floats, with one factor for each matrix and one for what it is given."""

MODELOPT_INT8 = Layout(
    frozenset({"modelopt"}),
    {
        ".weight": Part(frozenset({"I8"}), lambda r, c, b, g: (r, c)),
        ".weight_scale": Part(_SCALES, lambda r, c, b, g: None),
    },
)
"""ModelOpt's 8-bit whole numbers."""

NVFP4 = Layout(
    frozenset({"compressed-tensors"}),
    {
        ".weight_packed": Part(frozenset({"U8"}), lambda r, c, b, g: (r, c // 2)),
        ".weight_scale": Part(frozenset({"F8_E4M3"}), lambda r, c, b, g: (r, c // 16)),
        ".weight_global_scale": Part(frozenset({"F32"}), lambda r, c, b, g: None),
        ".input_global_scale": Part(frozenset({"F32"}), lambda r, c, b, g: None),
    },
)
"""NVIDIA's 4-bit floats, two in a byte, with an 8-bit float for each 16."""
