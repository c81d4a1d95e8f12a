"""`moe-megatron data`: turn text into indexed datasets, or describe one."""

import argparse
from collections.abc import Sequence

from moe_megatron.cli.parser import Parser
from moe_megatron.data.demo import ensure_demo
from moe_megatron.data.index import inspect, is_prefix
from moe_megatron.data.prepare import prepare_dataset
from moe_megatron.data.source import DEMO
from moe_megatron.errors import DataError
from moe_megatron.files import default_cache_dir, user_path
from moe_megatron.run.prepared_data import open_indexed_writer
from moe_megatron.text.demo import demo_tokenizer
from moe_megatron.text.loading import load_tokenizer

_EPILOG = """\
examples:
  moe-megatron data prepare corpus.jsonl more.jsonl.zst --output data/corpus --tokenizer demo
  moe-megatron data inspect data/corpus
  moe-megatron data demo"""


def run(argv: Sequence[str]) -> int:
    """Run the verb.

    Args:
        argv: What follows `moe-megatron data`.

    Returns:
        The exit code.

    Raises:
        DataError: A source cannot be read, or the output cannot be written.
    """
    options = _parser().parse_args(argv)
    return int(options.run(options))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="moe-megatron data",
        description="Prepare text for training: JSONL (.gz, .zst), text, Parquet or HF datasets.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    prepare = commands.add_parser("prepare", help="tokenise sources into one indexed dataset")
    prepare.add_argument("sources", nargs="+", help="files, folders or hub ids (id:config)")
    prepare.add_argument(
        "--output",
        type=user_path,
        required=True,
        metavar="PREFIX",
        help="path without .bin and .idx",
    )
    prepare.add_argument("--tokenizer", default="demo", help="'demo', a folder or a hub id")
    prepare.add_argument("--text-key", default="text", help="JSON key or column of the text")
    prepare.add_argument(
        "--max-bad-line-ratio",
        type=float,
        default=0.001,
        help="fail if a larger share of lines is unreadable (default: 0.001)",
    )
    prepare.add_argument(
        "--num-workers", type=int, help="number of processes (default: by size of the sources)"
    )
    prepare.set_defaults(run=_prepare)
    show = commands.add_parser("inspect", help="count documents and tokens of a dataset")
    show.add_argument("prefix", type=user_path)
    show.set_defaults(run=_inspect)
    demo = commands.add_parser("demo", help="build the embedded demo corpus")
    demo.set_defaults(run=_demo)
    for command in (prepare, show, demo):
        command.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    return parser


def _prepare(options: argparse.Namespace) -> int:
    demo = options.tokenizer == DEMO
    tokenizer = demo_tokenizer() if demo else load_tokenizer(options.tokenizer)
    prepared = prepare_dataset(
        options.sources,
        tokenizer,
        options.output,
        open_indexed_writer,
        num_workers=options.num_workers,
        text_key=options.text_key,
        max_bad_line_ratio=options.max_bad_line_ratio,
    )
    print(
        f"{prepared.prefix}: {prepared.documents:,} documents, {prepared.tokens:,} tokens "
        f"({prepared.dtype}), {prepared.bad_lines:,} bad lines, "
        f"{prepared.empty_documents:,} empty documents"
    )
    return 0


def _inspect(options: argparse.Namespace) -> int:
    if not is_prefix(options.prefix):
        raise DataError(
            f"{options.prefix} is not an indexed dataset ({options.prefix}.bin and .idx are "
            "missing); give the prefix that was given to 'moe-megatron data prepare --output'."
        )
    found = inspect(options.prefix)
    print(
        f"{options.prefix}: {found.documents:,} documents, {found.tokens:,} tokens ({found.dtype})"
    )
    return 0


def _demo(options: argparse.Namespace) -> int:
    demo = ensure_demo(default_cache_dir(), open_indexed_writer)
    print(f"tokenizer  {demo.tokenizer_dir}")
    for domain, prefix in demo.prefixes.items():
        print(f"{domain:<9}  {prefix} ({inspect(prefix).tokens:,} tokens)")
    return 0
