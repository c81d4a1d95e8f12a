"""`moe-megatron inspect`: describe a checkpoint, its memory, or which experts tokens go to."""

import argparse
import json
from collections.abc import Sequence

from moe_megatron.checkpoint.inspection import Inspection, inspect_checkpoint
from moe_megatron.cli.memory_text import memory_json, memory_text
from moe_megatron.cli.other_weights import OF_OTHER_WEIGHTS, add_other_weights
from moe_megatron.cli.parser import Parser
from moe_megatron.cli.token_lines import answer_texts
from moe_megatron.errors import ConfigError
from moe_megatron.files import user_path

_EPILOG = """\
examples:
  moe-megatron inspect runs/demo_moe/checkpoints
  moe-megatron inspect path/to/huggingface_model --json
  moe-megatron inspect path/to/huggingface_model --memory 16
  echo '"def mean(values):"' | moe-megatron inspect path/to/huggingface_model --tokens"""
_MOST_TOKENS = 1024
_CONTEXT = 2048


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
        "--tokens and --memory, and never executes code that a file names.",
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
    parser.add_argument(
        "--memory",
        type=float,
        metavar="GB",
        help="say what of the model fits into so many 10^9 bytes (resident, with a cache of "
        "experts, quantized), and how many tokens a second it would decode, by what this machine "
        "is measured to do; takes half a minute",
    )
    parser.add_argument(
        "--context",
        type=int,
        metavar="TOKENS",
        help=f"with --memory: tokens whose keys and values are kept (default: {_CONTEXT:,})",
    )
    parser.add_argument(
        "--trace",
        type=user_path,
        metavar="FILE",
        help="with --memory: the experts that the model has needed (moe-megatron cache record); "
        "without it the model's routing profile says how often experts are in memory",
    )
    add_other_weights(parser, "--trace, or the profile,")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    options = parser.parse_args(argv)
    if options.tokens:
        return answer_texts(options.checkpoint, most_tokens=_MOST_TOKENS)
    if options.memory is not None:
        return _memory(options)
    for name in ("context", "trace"):
        if getattr(options, name) is not None:
            raise ConfigError(f"--{name} belongs to --memory GB; give that, too.")
    if options.counted_on_other_weights:
        raise ConfigError(f"{OF_OTHER_WEIGHTS} belongs to --memory GB; give that, too.")
    found = inspect_checkpoint(options.checkpoint)
    print(json.dumps(found.to_dict(), indent=2) if options.json else _text(found))
    return 0


def _memory(options: argparse.Namespace) -> int:
    from moe_megatron.inference.planning.memory_plan import plan_memory  # torch, which is slow

    context = _CONTEXT if options.context is None else options.context
    plan = plan_memory(
        options.checkpoint,
        options.memory,
        context=context,
        trace=options.trace,
        of_any_model=options.counted_on_other_weights,
    )
    print(memory_json(plan) if options.json else memory_text(plan))
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
