"""Options of the command line for low-rank adapters: the fields of `adapter`, by short names."""

import argparse
from typing import Any

_FIELDS = (
    "rank",
    "alpha",
    "scaling",
    "targets",
    "ranks",
    "experts",
    "magnitude",
    "dropout",
    "frozen_experts",
)


def add_adapter_options(parser: argparse.ArgumentParser) -> None:
    """Let a parser take them."""
    add = parser.add_argument_group("low-rank adapters").add_argument
    add("--adapter-rank", type=int, metavar="R", help="train adapters of this rank (LoRA)")
    add("--adapter-alpha", type=float, metavar="ALPHA", help="their scale is ALPHA / R (16)")
    add("--adapter-scaling", metavar="WHICH", help="standard, or rank_stabilized: ALPHA / sqrt(R)")
    words: dict[str, Any] = {"action": "extend", "nargs": "+"}
    add("--adapter-targets", metavar="SELECTOR", help="matrices that have one", **words)
    add("--adapter-ranks", metavar="SELECTOR=R", help="ranks of their own", **words)
    add("--adapter-experts", metavar="HOW", help="experts have their own, or shared_a, or shared")
    add("--adapter-magnitude", action="store_true", default=None, help="train norms, too (DoRA)")
    add("--adapter-frozen-experts", metavar="HOW", help="as_is, or nf4: in 4 bits (QLoRA)")
    add("--adapter-dropout", type=float, metavar="P", help="dropout before A (0)")


def adapter_overrides(ours: argparse.Namespace) -> dict[str, Any]:
    """What they say, by dotted name.

    Args:
        ours: Options parsed by a parser that takes them.
    """
    given = {f"adapter.{it}": getattr(ours, f"adapter_{it}") for it in _FIELDS}
    return {name: value for name, value in given.items() if value is not None}
