"""`moe-megatron cache`: which experts a model needs, and what memory for some of them is worth."""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict

from moe_megatron.cli.other_weights import add_other_weights, profile_given
from moe_megatron.cli.parser import Parser
from moe_megatron.cli.text_file import text_of
from moe_megatron.config.aligned import aligned
from moe_megatron.errors import ConfigError
from moe_megatron.files import user_path
from moe_megatron.inference.cache.advice import SHARES, Outcome, advice, outcomes
from moe_megatron.inference.cache.trace import Trace

_EPILOG = """\
examples:
  moe-megatron cache record my_model my_text.txt --output trace.jsonl
  moe-megatron cache simulate trace.jsonl
  moe-megatron cache simulate trace.jsonl --gb 2 4 8
  moe-megatron cache fewer my_model my_text.txt --keep 4 6
  moe-megatron cache pack my_model s3://my_bucket/my_model"""
_TOKENS, _WINDOW, _SEEDS = 2048, 256, 3


def run(argv: Sequence[str]) -> int:
    """Run the verb.

    Args:
        argv: What follows `moe-megatron cache`.

    Returns:
        The exit code.

    Raises:
        CheckpointError: The model cannot be read, or its experts not one by one.
        ConfigError: An option does not fit.
        DataError: The text or the trace cannot be read.
        MappingError: The model family is unknown.
    """
    options = _parser().parse_args(argv)
    return int(options.run(options))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="moe-megatron cache",
        description="Which experts a model needs, token by token; how often they would be in a "
        "memory for some of them, by policy and size, beside what nobody can beat; and what it "
        "costs in perplexity to have no others. And where experts are: packed into a bucket.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    record = commands.add_parser("record", help="write the experts of each token of a text")
    record.add_argument("model", metavar="MODEL", help="a Hugging Face folder, or a hub id")
    record.add_argument("text", type=user_path, metavar="TEXT", help="a file of text")
    record.add_argument("--output", type=user_path, required=True, metavar="FILE", help="the trace")
    record.set_defaults(run=_record)
    simulate = commands.add_parser("simulate", help="replay a trace by policy and size")
    simulate.add_argument("trace", type=user_path, metavar="TRACE")
    simulate.add_argument(
        "--gb", type=float, nargs="+", metavar="GB", help="sizes (default: shares of all experts)"
    )
    simulate.add_argument("--json", action="store_true", help="print JSON")
    simulate.set_defaults(run=_simulate)
    fewer = commands.add_parser(
        "fewer", help="perplexity beside bytes with fewer experts, by how they are chosen"
    )
    fewer.add_argument("model", metavar="MODEL", help="a Hugging Face folder, or a hub id")
    fewer.add_argument("text", type=user_path, metavar="TEXT", help="a file of text")
    fewer.add_argument(
        "--keep", type=int, nargs="+", required=True, metavar="N", help="experts of each layer"
    )
    fewer.add_argument(
        "--profile",
        type=user_path,
        metavar="FILE",
        help="routing profile (default: that of the model; without one the first half of the text "
        "is counted and the second judged)",
    )
    add_other_weights(fewer, "--profile")
    fewer.add_argument(
        "--random",
        type=int,
        default=_SEEDS,
        metavar="N",
        help=f"random choices (default: {_SEEDS})",
    )
    fewer.add_argument("--json", action="store_true", help="print JSON")
    fewer.set_defaults(run=_fewer)
    pack = commands.add_parser("pack", help="write the experts to a folder or a bucket")
    pack.add_argument("model", metavar="MODEL", help="a Hugging Face folder, or a hub id")
    pack.add_argument(
        "target",
        metavar="TARGET",
        help="a folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX; credentials are those of the "
        "environment or the machine, and AWS_ENDPOINT_URL names another server",
    )
    pack.add_argument("--quiet", action="store_true", help="show no progress")
    pack.set_defaults(run=_pack)
    for command in (record, fewer):
        command.add_argument(
            "--tokens", type=int, default=_TOKENS, help=f"tokens of the text (default: {_TOKENS:,})"
        )
        command.add_argument(
            "--window",
            type=int,
            default=_WINDOW,
            help=f"tokens that know of each other, as of one request (default: {_WINDOW})",
        )
    for command in (record, simulate, fewer, pack):
        command.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    return parser


def _text(options: argparse.Namespace) -> str:
    for name in ("tokens", "window"):
        if getattr(options, name) < 2:
            raise ConfigError(f"--{name} ({getattr(options, name)}) must be 2 or more.")
    return text_of(options.text)


def _record(options: argparse.Namespace) -> int:
    text = _text(options)

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


def _fewer(options: argparse.Namespace) -> int:
    text = _text(options)
    if options.random < 1:
        raise ConfigError(
            f"--random ({options.random}) must be 1 or more: without a choice by chance nobody "
            "knows what the profile is worth."
        )

    options.profile = profile_given(options, "--profile")

    from moe_megatron.inference.fewer import judged  # torch, which is slow

    found = judged(
        options.model,
        text,
        options.keep,
        profile=options.profile,
        tokens=options.tokens,
        window=options.window,
        seeds=options.random,
    )
    if options.json:
        print(json.dumps(asdict(found), indent=2))
        return 0
    whole = found.outcomes[0]
    print(
        f"{found.model}: perplexity of {found.tokens:,} tokens; all experts are "
        f"{whole.nbytes / 1e9:.3g} GB; use was counted in {found.counted}."
    )
    head = ["choice", "experts a layer", "GB saved", "of all uses", "perplexity", "of the whole's"]
    rows = [
        [
            it.choice,
            f"{it.experts:g}",
            f"{it.bytes_saved / 1e9:.3g}",
            f"{it.use:.1%}",
            f"{it.perplexity:.4g}",
            f"{it.perplexity / whole.perplexity:.3f}",
        ]
        for it in found.outcomes
    ]
    print("\n".join(aligned([head, *rows])))
    return 0


def _pack(options: argparse.Namespace) -> int:
    from moe_megatron.inference.store.pack import pack_experts  # torch, which is slow

    packed = pack_experts(options.model, options.target, progress=not options.quiet)
    print(
        f"{packed.experts:,} experts, {packed.nbytes / 1e9:.3g} GB, are in {packed.address}; read "
        f'them with OptimizedMoEModel.from_pretrained(MODEL, experts="{packed.address}").'
    )
    return 0
