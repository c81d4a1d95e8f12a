"""`moe-megatron adapter`: export, merge and describe low-rank adapters."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_megatron.cli.parser import Parser
from moe_megatron.files import user_path

_EPILOG = """\
examples:
  moe-megatron adapter export runs/tuned my_adapter --base allenai/OLMoE-1B-7B-0924
  moe-megatron adapter merge runs/tuned merged_model
  moe-megatron adapter merge my_model merged_model --adapter my_adapter
  moe-megatron adapter inspect my_adapter"""


def run(argv: Sequence[str]) -> int:
    """Run the verb.

    Args:
        argv: What follows `moe-megatron adapter`.

    Returns:
        The exit code.

    Raises:
        CheckpointError: There is no adapter, it belongs to another base, or the output cannot be
            written.
        MappingError: No family can express the model, or PEFT not the adapter.
    """
    options = _parser().parse_args(argv)
    return int(options.run(options))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="moe-megatron adapter",
        description="Low-rank adapters: of a run's checkpoint, and in PEFT's format.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    export = commands.add_parser("export", help="write the adapter of a run in PEFT's format")
    export.add_argument("source", type=user_path, metavar="RUN", help="a run, or its checkpoint")
    export.add_argument("output", type=user_path, metavar="FOLDER", help="a new folder")
    export.add_argument("--base", metavar="MODEL", help="name of the base that peft loads")
    export.set_defaults(run=_export)
    merge = commands.add_parser("merge", help="write the model that base and adapter make")
    merge.add_argument(
        "source", metavar="SOURCE", help="a run with adapters; or the base, a folder or a hub id"
    )
    merge.add_argument("output", type=user_path, metavar="FOLDER", help="a new folder")
    merge.add_argument(
        "--adapter", type=user_path, metavar="FOLDER", help="in PEFT's format (default: the run's)"
    )
    merge.add_argument(
        "--megatron", action="store_true", help="write a Megatron checkpoint, for --load"
    )
    merge.set_defaults(run=_merge)
    inspect = commands.add_parser("inspect", help="describe an adapter")
    inspect.add_argument("folder", type=user_path, metavar="FOLDER", help="of PEFT, or a run")
    inspect.add_argument("--json", action="store_true", help="print JSON")
    inspect.set_defaults(run=_inspect)
    for command in (export, merge, inspect):
        command.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    return parser


def _export(options: argparse.Namespace) -> int:
    from moe_megatron.adapters.exported import export_adapter  # torch, which is slow
    from moe_megatron.adapters.in_words import words_of

    adapter = export_adapter(options.source, options.output, base=options.base)
    print(f"{words_of(adapter)}; written to {options.output}")
    return 0


def _merge(options: argparse.Namespace) -> int:
    from moe_megatron.adapters.in_words import words_of
    from moe_megatron.adapters.merged_folder import merge_folder
    from moe_megatron.checkpoint.hub import local_folder

    source = local_folder(options.source)
    adapter = merge_folder(
        source, options.output, adapter=options.adapter, as_megatron=options.megatron
    )
    print(f"{words_of(adapter)}; merged into {options.output}")
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from moe_megatron.adapters.in_words import described

    found = described(Path(options.folder))
    print(json.dumps(found, indent=2) if options.json else _text(found))
    return 0


def _text(found: dict[str, Any]) -> str:
    lines = ((name, value) for name, value in found.items() if value is not None)
    return "\n".join(f"{name:<11} {value}" for name, value in lines)
