"""`moe-megatron data`: turn text and conversations into indexed datasets, or look into them."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from moe_megatron.cli.parser import Parser
from moe_megatron.config.data import TEXT
from moe_megatron.config.preferences import PREFERENCES
from moe_megatron.data.demo import ensure_demo
from moe_megatron.data.index import inspect, is_prefix
from moe_megatron.data.instructions.encoder import chat_encoder
from moe_megatron.data.instructions.format_registry import AUTOMATIC
from moe_megatron.data.instructions.preview import (
    COLOURS,
    SIGNS,
    marked_lines,
    preview_files,
    preview_prepared,
)
from moe_megatron.data.instructions.stored import StoredPairs, StoredSamples, holds_pairs
from moe_megatron.data.instructions.tokens import ChatEncoder
from moe_megatron.data.prepare import prepare_dataset
from moe_megatron.data.shards import expand_sources
from moe_megatron.data.source import DEMO, prepared_part
from moe_megatron.errors import ConfigError, DataError
from moe_megatron.files import default_cache_dir, user_path
from moe_megatron.run.prepared_data import open_indexed_writer, open_instruction_writer
from moe_megatron.text.demo import demo_tokenizer
from moe_megatron.text.loading import load_tokenizer
from moe_megatron.text.tokenizer import Tokenizer

_FORMAT_HELP = (
    "text; or, of conversations: messages, sharegpt, alpaca, completion, my_format.py:read, or "
    "instructions for what the first rows show; or preferences, pairs of a chosen and a rejected "
    "answer (default: %(default)s)"
)
_EPILOG = """\
examples:
  moe-megatron data prepare corpus.jsonl more.jsonl.zst --output data/corpus --tokenizer demo
  moe-megatron data preview chat.jsonl --tokenizer models/chat
  moe-megatron data prepare chat.jsonl --format messages --output data/chat --tokenizer models/chat
  moe-megatron data preview pairs.jsonl --format preferences --tokenizer models/chat
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
        description="Prepare text, or conversations, for training: JSONL (.gz, .zst), text, "
        "Parquet or HF datasets.",
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
    prepare.add_argument("--format", default=TEXT, help=_FORMAT_HELP)
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
    preview = commands.add_parser(
        "preview", help="show what a training learns of conversations, and count it"
    )
    preview.add_argument("source", help="file, folder, hub id, or prefix of a prepared dataset")
    preview.add_argument("--tokenizer", required=True, help="a folder or a hub id")
    preview.add_argument("--format", default=AUTOMATIC, help=_FORMAT_HELP)
    preview.add_argument("--samples", type=int, default=3, help="samples to show (default: 3)")
    preview.add_argument(
        "--sequence-length", type=int, help="tokens of a row, to count what is cut there"
    )
    preview.set_defaults(run=_preview)
    show = commands.add_parser("inspect", help="count documents and tokens of a dataset")
    show.add_argument("prefix", type=user_path)
    show.set_defaults(run=_inspect)
    demo = commands.add_parser("demo", help="build the embedded demo corpus")
    demo.set_defaults(run=_demo)
    for command in (prepare, preview, show, demo):
        command.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    return parser


def _tokenizer(name: str) -> Tokenizer:
    return demo_tokenizer() if name == DEMO else load_tokenizer(name)


def _prepare(options: argparse.Namespace) -> int:
    tokenizer, chat = _tokenizer(options.tokenizer), None
    if options.format != TEXT:
        chat = chat_encoder(options.format, tokenizer, expand_sources(options.sources))
        print(f"format: {chat.format}")
    prepared = prepare_dataset(
        options.sources,
        chat or tokenizer,
        options.output,
        open_indexed_writer if chat is None else open_instruction_writer,
        num_workers=options.num_workers,
        text_key=options.text_key,
        max_bad_line_ratio=options.max_bad_line_ratio,
    )
    print(
        f"{prepared.prefix}: {prepared.documents:,} {_called(chat)}, "
        f"{prepared.tokens:,} tokens{_of_which(prepared.learned_tokens)} "
        f"({prepared.dtype}), {prepared.bad_lines:,} bad lines, "
        f"{prepared.empty_documents:,} empty documents"
    )
    return 0


def _called(chat: ChatEncoder | None) -> str:
    """What a prepared dataset consists of."""
    if chat is None:
        return "documents"
    return "pairs" if chat.format == PREFERENCES else "samples"


def _of_which(learned: int | None) -> str:
    return "" if learned is None else f", {learned:,} of them learned"


def _preview(options: argparse.Namespace) -> int:
    for name in ("samples", "sequence_length"):
        if (number := getattr(options, name)) is not None and number < 1:
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} ({number}) must be at least 1; leave it out otherwise.")
    tokenizer, prefix = _tokenizer(options.tokenizer), user_path(options.source)
    wanted = {"keep": options.samples, "sequence_length": options.sequence_length}
    if is_prefix(prefix):
        prepared_part(prefix, tokenizer)  # refuses another tokenizer's
        preview = preview_prepared(prefix, tokenizer, **wanted)
    else:
        files = expand_sources([options.source])
        chat = chat_encoder(options.format, tokenizer, files)
        print(f"format: {chat.format}")
        preview = preview_files(files, chat, **wanted)
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    marks = COLOURS if coloured else SIGNS
    rejected = f", rejected: {marks.begin_rejected}like this{marks.end_rejected}"
    print(f"learned: {marks.begin}like this{marks.end}{rejected * preview.pairs}")
    called = "pair" if preview.pairs else "sample"
    for number, sample in enumerate(preview.shown, start=1):
        print(f"--- {called} {number}: {sample.tokens:,} tokens, {sample.learned:,} learned")
        for line in marked_lines(sample, tokenizer, marks):
            print(line)
    print("---")
    for line in preview.summary(options.sequence_length):
        print(line)
    return 0


def _inspect(options: argparse.Namespace) -> int:
    if not is_prefix(options.prefix):
        raise DataError(
            f"{options.prefix} is not an indexed dataset ({options.prefix}.bin and .idx are "
            "missing); give the prefix that was given to 'moe-megatron data prepare --output'."
        )
    found = inspect(options.prefix)
    what, learned = "documents", None
    if found.pieces is not None:
        prefix = Path(options.prefix)
        pairs = holds_pairs([prefix])
        what = "pairs" if pairs else "samples"
        stored = StoredPairs(prefix).sides if pairs else StoredSamples(prefix)
        learned = int(stored.learned_within(found.tokens).sum())
    print(
        f"{options.prefix}: {found.documents:,} {what}, {found.tokens:,} tokens"
        f"{_of_which(learned)} ({found.dtype})"
    )
    return 0


def _demo(options: argparse.Namespace) -> int:
    demo = ensure_demo(default_cache_dir(), open_indexed_writer)
    print(f"tokenizer  {demo.tokenizer_dir}")
    for domain, prefix in demo.prefixes.items():
        print(f"{domain:<9}  {prefix} ({inspect(prefix).tokens:,} tokens)")
    return 0
