"""`moe-megatron quantize`: experts in 4 or 8 bits, and what that costs."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from moe_megatron.cli.parser import Parser
from moe_megatron.errors import ConfigError, DataError
from moe_megatron.files import user_path
from moe_megatron.reading import read_text

_EPILOG = """\
Everything but the experts stays as it is: routers, attention, embeddings. transformers and vLLM
load the folder (compressed-tensors, pack-quantized); with --asymmetric, transformers 5.23 and vLLM
0.22 refuse it, and with a profile, or with dense_and_sparse, only this package reads it.

examples:
  moe-megatron quantize my_model my_model_4bit --text my_text.txt
  moe-megatron quantize my_model my_model_4bit --asymmetric --method least_squares
  moe-megatron quantize my_model my_model_8bit --bits 8
  moe-megatron quantize my_model my_model_mixed --profile routing_profile.json --hot-share 0.25"""
_TOKENS = 2048
_MOST_TEXT = 64 * 2**20


def run(argv: Sequence[str]) -> int:
    """Run the verb.

    Args:
        argv: What follows `moe-megatron quantize`.

    Returns:
        The exit code.

    Raises:
        CheckpointError: The model cannot be read, is quantized already, or must not be replaced.
        ConfigError: There is no such method or precision.
        DataError: The text or the profile cannot be read, or the folder not be written.
        MappingError: The model family is unknown.
    """
    options = _parser().parse_args(argv)
    if options.tokens < 2:
        raise ConfigError(f"--tokens ({options.tokens}) must be 2 or more.")
    if options.hot_share is not None and options.profile is None:
        raise ConfigError("--hot-share says how many experts of a --profile are hot; give both.")
    text = None if options.text is None else _text(options.text)

    from moe_megatron.inference.quantization.quantize import HOT_SHARE, Recipe, quantize  # torch

    recipe = Recipe(
        method=options.method,
        bits=options.bits,
        group_size=options.group_size,
        symmetric=not options.asymmetric,
        profile=options.profile,
        hot_share=HOT_SHARE if options.hot_share is None else options.hot_share,
    )
    made = quantize(
        options.model,
        options.output,
        recipe,
        overwrite=options.overwrite,
        progress=not options.quiet,
    )
    sizes = made.sizes
    print(made.audit.table())
    before, after = sizes.experts_before, sizes.experts_after
    print(
        f"experts: {before / 1e6:,.1f} MB before, {after / 1e6:,.1f} MB after "
        f"({after / before:.0%}); everything else: {sizes.others / 1e6:,.1f} MB"
    )
    if text is not None:
        print(_perplexities(options.model, made.folder, text, options.tokens))
    print(f"written to {made.folder}")
    return 0


def _text(path: Path) -> str:
    try:
        return read_text(path, _MOST_TEXT)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def _perplexities(source: str, folder: Path, text: str, tokens: int) -> str:
    from moe_megatron.checkpoint.hub import local_folder
    from moe_megatron.inference.perplexity import perplexity
    from moe_megatron.text.loading import load_tokenizer

    path = local_folder(source)
    ids = load_tokenizer(str(path)).encode(text)[:tokens]
    before, after = perplexity(path, ids), perplexity(folder, ids)
    return (
        f"perplexity of {len(ids):,} tokens: {before:.3f} before, {after:.3f} after "
        f"({after / before - 1:+.1%})"
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="moe-megatron quantize",
        description="Write a model folder whose experts have weights of 4 or 8 bits. One expert is "
        "in memory at a time, and the folder appears once it is complete and checked.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="a Hugging Face folder, or a hub id")
    parser.add_argument("output", type=user_path, metavar="OUTPUT", help="the folder to write")
    parser.add_argument("--bits", type=int, default=4, help="4 or 8 (default: 4)")
    parser.add_argument(
        "--group-size",
        type=int,
        default=32,
        metavar="N",
        help="of 4 bits: how many weights of a row share a scale: 32, 64, 128 or 256 (default: 32)",
    )
    parser.add_argument(
        "--asymmetric",
        action="store_true",
        help="of 4 bits: each group has a zero point beside its scale, which is closer to the "
        "weights; fewer others read that",
    )
    parser.add_argument(
        "--method",
        default="rtn",
        help="rtn: round to nearest; least_squares: with the best scale of each group, which takes "
        "longer; dense_and_sparse: rtn, and the largest 0.45%% of the "
        "weights stay as they are (default: rtn)",
    )
    parser.add_argument(
        "--profile",
        type=user_path,
        metavar="FILE",
        help="a routing profile: the most used experts of each layer get 8 bits",
    )
    parser.add_argument(
        "--hot-share",
        type=float,
        metavar="X",
        help="how many experts of a layer those are, as a share (default: 0.25)",
    )
    parser.add_argument(
        "--text",
        type=user_path,
        metavar="FILE",
        help="a text, on which perplexity before and after is measured",
    )
    parser.add_argument(
        "--tokens", type=int, default=_TOKENS, help=f"of the text (default: {_TOKENS:,})"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the output")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    return parser
