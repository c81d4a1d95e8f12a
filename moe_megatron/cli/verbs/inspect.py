"""`moe-megatron inspect`: describe a checkpoint, or ask it which experts tokens go to."""

import argparse
import json
from collections.abc import Sequence

from moe_megatron.checkpoint.inspection import Inspection, inspect_checkpoint
from moe_megatron.cli.parser import Parser
from moe_megatron.cli.token_lines import answer_texts
from moe_megatron.files import user_path

_EPILOG = """\
examples:
  moe-megatron inspect runs/demo_moe/checkpoints
  moe-megatron inspect path/to/huggingface_model --json
  echo '"def mean(values):"' | moe-megatron inspect path/to/huggingface_model --tokens"""
_MOST_TOKENS = 1024


def run(argv: Sequence[str]) -> int:
    """Run the verb.

    Args:
        argv: What follows `moe-megatron inspect`.

    Returns:
        The exit code.

    Raises:
        CheckpointError: The folder is not a checkpoint, or is damaged.
        MappingError: The model family is unknown.
    """
    parser = Parser(
        prog="moe-megatron inspect",
        description="Describe a Hugging Face or Megatron checkpoint. Reads headers only, but for "
        "--tokens, and never executes code that a file names.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=user_path, metavar="FOLDER")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--tokens",
        action="store_true",
        help="load the model, read texts from the standard input, one JSON string a line, and "
        f"answer each with the experts of its tokens ({_MOST_TOKENS:,} at most), as a line of JSON",
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    options = parser.parse_args(argv)
    if options.tokens:
        return answer_texts(options.checkpoint, most_tokens=_MOST_TOKENS)
    found = inspect_checkpoint(options.checkpoint)
    print(json.dumps(found.to_dict(), indent=2) if options.json else _text(found))
    return 0


def _text(found: Inspection) -> str:
    rows = {
        "checkpoint": str(found.path),
        "format": found.format,
        "family": found.family,
        "parameters": f"{found.parameters:,} ({found.active_parameters:,} active for a token)",
        "layers": found.layers,
        "experts": f"{found.experts} (top {found.top_k})" if found.experts else "none (dense)",
        "router": found.router,
        "expert": found.expert,
        "types": ", ".join(found.dtypes),
        "files": f"{found.files}, {found.nbytes / 1e9:.3f} GB",
        "iteration": found.iteration,
        "optimizer": "yes" if found.has_optimizer else None,
        "checksums": "yes (moe-megatron verify checks them)" if found.checksums else "none",
        "routing": found.routing,
    }
    lines = [f"{name:<11} {value}" for name, value in rows.items() if value is not None]
    return "\n".join([*lines, *(f"note        {limit}" for limit in found.limits)])
