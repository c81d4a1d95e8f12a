"""`moe-megatron quantize`: experts in 4 or 8 bits, and what that costs."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moe_megatron.cli.other_weights import add_other_weights, profile_given
from moe_megatron.cli.parser import Parser
from moe_megatron.cli.text_file import text_of
from moe_megatron.config.checks import join_words
from moe_megatron.errors import ConfigError
from moe_megatron.files import user_path
from moe_megatron.inference.quantization.libraries.library import METHODS

if TYPE_CHECKING:
    from moe_megatron.inference.quantization.quantize import Quantization

_EPILOG = """\
Everything but the experts stays as it is: routers, attention, embeddings. transformers and vLLM
load the folder (compressed-tensors, pack-quantized); with --asymmetric, transformers 5.23 and vLLM
0.22 refuse it, and with a profile, or with dense_and_sparse, only this package reads it.

examples:
  moe-megatron quantize my_model my_model_4bit --text my_text.txt
  moe-megatron quantize my_model my_model_4bit --asymmetric --method least_squares
  moe-megatron quantize my_model my_model_8bit --bits 8
  moe-megatron quantize my_model my_model_mixed --profile routing_profile.json --hot-share 0.25
  moe-megatron quantize --build-environment gptqmodel
  moe-megatron quantize my_model my_model_gptq --method gptq --calibration my_text.txt"""
_TOKENS = 2048


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
    if options.build_environment is not None:
        return _build_environment(options)
    if options.model is None or options.output is None:
        raise ConfigError("give the model and the folder to write: MODEL OUTPUT.")
    if options.tokens < 2:
        raise ConfigError(f"--tokens ({options.tokens}) must be 2 or more.")
    if options.hot_share is not None and options.profile is None:
        raise ConfigError("--hot-share says how many experts of a --profile are hot; give both.")
    if (options.method in METHODS) != (options.calibration is not None):
        raise ConfigError(
            f"--calibration is the text that {join_words([*METHODS])} learn from, and "
            "no other --method takes one; give both, or neither."
        )
    options.profile = profile_given(options, "--profile")
    text = None if options.text is None else text_of(options.text)
    made = _by_library(options) if options.method in METHODS else _alone(options)
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


def _alone(options: argparse.Namespace) -> "Quantization":
    """Experts are rounded one by one, here."""
    from moe_megatron.inference.quantization.quantize import HOT_SHARE, Recipe, quantize  # torch

    recipe = Recipe(
        method=options.method,
        bits=options.bits,
        group_size=options.group_size,
        symmetric=not options.asymmetric,
        profile=options.profile,
        hot_share=HOT_SHARE if options.hot_share is None else options.hot_share,
    )
    return quantize(
        options.model,
        options.output,
        recipe,
        overwrite=options.overwrite,
        progress=not options.quiet,
    )


def _by_library(options: argparse.Namespace) -> "Quantization":
    """All experts are given to a library, with some of a text."""
    if options.bits != 4 or options.profile is not None or options.asymmetric:
        raise ConfigError(
            f"--method {options.method} rounds all experts alike, without zero points; leave "
            "--bits, --profile and --asymmetric out."
        )
    if METHODS[options.method].as_written and options.text is not None:
        raise ConfigError(
            f"nothing here computes with what --method {options.method} writes, which is for "
            "servers on GPUs; leave --text out."
        )
    text = text_of(options.calibration)

    from moe_megatron.inference.quantization.libraries.by_library import (  # torch
        LibraryRecipe,
        quantize_by_library,
    )

    recipe = LibraryRecipe(
        method=options.method,
        group_size=options.group_size,
        sequences=options.sequences,
        length=options.length,
        least=options.least,
    )
    made, coverage = quantize_by_library(
        options.model,
        options.output,
        recipe,
        text,
        overwrite=options.overwrite,
        progress=not options.quiet,
    )
    if options.quiet:
        print(coverage.table())
    return made


def _build_environment(options: argparse.Namespace) -> int:
    from moe_megatron.inference.quantization.libraries.environment import (
        build_environment,
        library_of,
    )

    started = time.monotonic()
    library = library_of(options.build_environment)
    folder, new = build_environment(library)
    size = sum(it.lstat().st_size for it in folder.rglob("*") if it.is_file())
    when = f"built in {time.monotonic() - started:.0f} s" if new else "there already"
    print(f"the environment of {library.title} was {when}: {size / 1e6:,.0f} MB in {folder}")
    return 0


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
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="a Hugging Face folder, or a hub id"
    )
    parser.add_argument(
        "output", nargs="?", type=user_path, metavar="OUTPUT", help="the folder to write"
    )
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
        "weights stay as they are; gptq, by GPTQModel; w4a16 and awq, by llm-compressor; "
        "for servers on GPUs nvfp4, by llm-compressor, and modelopt_fp8 and modelopt_int8, by "
        "ModelOpt (default: rtn)",
    )
    parser.add_argument(
        "--profile",
        type=user_path,
        metavar="FILE",
        help="a routing profile: the most used experts of each layer get 8 bits",
    )
    add_other_weights(parser, "--profile")
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
    library = parser.add_argument_group(
        "methods of other libraries",
        "They see the whole model and some of a text, in an environment of their own. Only experts "
        "are rounded, and what comes back is checked.",
    )
    library.add_argument(
        "--build-environment",
        metavar="NAME",
        help="build what they run in, once: gptqmodel, llmcompressor or modelopt",
    )
    library.add_argument(
        "--calibration",
        type=user_path,
        metavar="FILE",
        help="the text that they learn from, like what the model will read",
    )
    for name, default, what in (
        ("--sequences", 64, "taken from it, so that every expert gets some tokens"),
        ("--length", 512, "tokens of each"),
        ("--least", 256, "tokens that every expert should get"),
    ):
        library.add_argument(
            name, type=int, default=default, metavar="N", help=f"{what} (default: {default})"
        )
    parser.add_argument("--overwrite", action="store_true", help="replace the output")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    return parser
