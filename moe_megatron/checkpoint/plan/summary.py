"""Summarizes a mapping: which Megatron tensors are made of which Hugging Face tensors."""

import re
from collections.abc import Iterable, Mapping

from moe_megatron.checkpoint.formats.hf_folder import TensorInfo
from moe_megatron.families.links import PACKED, Link, Transform

_NUMBER = re.compile(r"\.\d+(?=\.|$)")


def summarize(
    links: Iterable[Link], tensors: Mapping[str, TensorInfo] | None = None
) -> tuple[str, ...]:
    """One line for each Megatron key.

    Args:
        links: The links to convert.
        tensors: The Hugging Face tensors, for their types; None if they do not exist yet.
    """
    lines: dict[tuple[str, str], int] = {}
    for link in links:
        names = list(dict.fromkeys(_NUMBER.sub(".*", block.name) for block in link.blocks))
        key = " = ".join((link.key, *link.aliases))
        dtypes = sorted({tensors[b.name].dtype for b in link.blocks}) if tensors else []
        text = f"{key} {list(link.shape)}", f"{_how(link)} {', '.join(names)} {' '.join(dtypes)}"
        lines[text] = lines.get(text, 0) + 1
    return tuple(
        f"  {count:>6} x {megatron}\n           {origin.rstrip()}"
        for (megatron, origin), count in lines.items()
    )


def _how(link: Link) -> str:
    if not link.blocks:
        return "random"
    if len(link.terms) > 1:
        return f"weighted sum of {len(link.terms)}:"
    if any(block.transform in PACKED for block in link.blocks):
        return "multiplied out, of 4 bits:"
    if any(block.transform is not Transform.NONE for block in link.blocks):
        return "transposed or interleaved:"
    names = {block.name for block in link.blocks}
    if len(link.blocks) > len(names):
        return "taking turns:"
    if len(names) > 1:
        return "joined:"
    (block,) = link.blocks
    return "the same:" if block.shape == link.shape else "a part of:"
