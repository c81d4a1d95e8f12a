"""`moe-megatron cache`: which experts a model needs, and what memory for some of them is worth."""

import argparse
import json
import math
from collections.abc import Sequence

from moe_megatron.cli.parser import Parser
from moe_megatron.config.aligned import aligned
from moe_megatron.errors import ConfigError
from moe_megatron.files import user_path
from moe_megatron.inference.cache.advice import SHARES, Outcome, advice, outcomes
from moe_megatron.inference.cache.trace import Trace
from moe_megatron.reading import read_text

_EPILOG = """\
examples:
  moe-megatron cache record my_model my_text.txt --output trace.jsonl
  moe-megatron cache simulate trace.jsonl
  moe-megatron cache simulate trace.jsonl --gb 2 4 8"""
_TOKENS, _WINDOW = 2048, 256
_MOST_TEXT = 64 * 2**20


def run(argv: Sequence[str]) -> int:
    """Run the verb.

    Args:
        argv: What follows `moe-megatron cache`.

    Returns:
        The exit code.

    Raises:
        CheckpointError: The model cannot be read, or its experts not one by one.
        DataError: The text or the trace cannot be read.
        MappingError: The model family is unknown.
    """
    options = _parser().parse_args(argv)
    return int(options.run(options))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="moe-megatron cache",
        description="Which experts a model needs, token by token, and how often they would be in "
        "a memory for some of them, by policy and size, beside what nobody can beat.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    record = commands.add_parser("record", help="write the experts of each token of a text")
    record.add_argument("model", metavar="MODEL", help="a Hugging Face folder, or a hub id")
    record.add_argument("text", type=user_path, metavar="TEXT", help="a file of text")
    record.add_argument("--output", type=user_path, required=True, metavar="FILE", help="the trace")
    record.add_argument(
        "--tokens", type=int, default=_TOKENS, help=f"tokens of the text (default: {_TOKENS:,})"
    )
    record.add_argument(
        "--window",
        type=int,
        default=_WINDOW,
        help=f"tokens that know of each other, as of one request (default: {_WINDOW})",
    )
    record.set_defaults(run=_record)
    simulate = commands.add_parser("simulate", help="replay a trace by policy and size")
    simulate.add_argument("trace", type=user_path, metavar="TRACE")
    simulate.add_argument(
        "--gb", type=float, nargs="+", metavar="GB", help="sizes (default: shares of all experts)"
    )
    simulate.add_argument("--json", action="store_true", help="print JSON")
    simulate.set_defaults(run=_simulate)
    for command in (record, simulate):
        command.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    return parser


def _record(options: argparse.Namespace) -> int:
    for name in ("tokens", "window"):
        if getattr(options, name) < 2:
            raise ConfigError(f"--{name} ({getattr(options, name)}) must be 2 or more.")
    text = read_text(options.text, _MOST_TEXT)

    from moe_megatron.inference.recording import recorded  # torch, which is slow

    trace = recorded(options.model, text, tokens=options.tokens, window=options.window)
    trace.save(options.output)
    about = trace.about
    print(
        f"{len(trace.passes):,} tokens, each with {about.top_k} of {about.experts} experts in "
        f"{about.layers} layers; written to {options.output}"
    )
    return 0


def _simulate(options: argparse.Namespace) -> int:
    trace = Trace.load(options.trace)
    about = trace.about
    every = about.every * about.expert_bytes / 1e9
    for it in options.gb or ():
        if not 0 < it < math.inf:
            raise ConfigError(f"--gb ({it:g}) must be above 0.")
    shares = [it / every for it in options.gb] if options.gb else SHARES
    found = outcomes(trace, shares)
    if options.json:
        rows = [
            {
                "experts": it.slots,
                "share": it.share,
                "gigabytes": it.gigabytes,
                "hit_rates": it.hit_rates,
                "best": it.best,
                "bytes_a_pass": it.bytes_a_pass,
            }
            for it in found
        ]
        print(json.dumps(rows, indent=2))
        return 0
    print(
        f"{about.model or options.trace.name}: {len(trace.passes):,} forward passes, the second "
        f"half replayed, of which policies know the first; all experts are {every:.3g} GB."
    )
    print("\n".join(_table(found)))
    print(advice(found))
    return 0


def _table(found: Sequence[Outcome]) -> list[str]:
    names = list(found[0].hit_rates)
    head = ["GB", "of all", *names, "MB a pass"]
    rows = [
        [
            f"{it.gigabytes:.3g}",
            f"{it.share:.0%}",
            *(f"{it.hit_rates[name]:.1%}" for name in names),
            f"{it.bytes_a_pass / 1e6:.3g}",
        ]
        for it in found
    ]
    return aligned([head, *rows], flush_left=0)
