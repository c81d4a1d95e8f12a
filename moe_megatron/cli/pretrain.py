"""One rank's part of a training run: what `torchrun pretrain_moe.py` executes in every process.

It reads the command line (a configuration, our own options and any Megatron flag), prints the
automatic choices, trains, and prints a summary on rank 0. An error that a user can fix is reported
as one paragraph with exit code 2.
"""

import argparse
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_megatron.cli.adapter_options import adapter_overrides, add_adapter_options
from moe_megatron.cli.choices import choice_overrides, with_own_code
from moe_megatron.cli.parser import Parser
from moe_megatron.cli.words import read_words
from moe_megatron.config import RunConfig, dump_yaml, load_config, parse_override
from moe_megatron.config.flags import split_flags
from moe_megatron.errors import INTERRUPTED, MoEError
from moe_megatron.platform.collection import without_collection
from moe_megatron.platform.parent import end_with_launcher
from moe_megatron.run.rank_process import explained, leave_together

if TYPE_CHECKING:
    from moe_megatron.mcore.loop.callbacks import Callback

DEFAULT_CONFIG = "demo_moe"

_PATIENCE_SECONDS = 10.0

_DESCRIPTION = """\
Train a Mixture-of-Experts model with Megatron's own loop, on CPU or GPU.
Every Megatron flag is accepted in addition to the options below and overrides the configuration."""

_EPILOG = """\
example:
  torchrun --nproc-per-node 2 pretrain_moe.py --config demo_moe --train-iters 50"""


def program() -> list[str]:
    """The words with which torchrun starts this: the repository's script, or else the module."""
    script = Path(__file__).parents[2] / "pretrain_moe.py"
    return [str(script)] if script.exists() else ["-m", "moe_megatron.pretrain"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainOptions:
    """The parsed command line."""

    config: RunConfig
    print_config: bool
    debug: bool


def parse_options(argv: Sequence[str]) -> PretrainOptions:
    """Read the command line.

    Raises:
        ConfigError: A file, field, value or flag is wrong.
    """
    return read_options(*read_words(option_parser(), argv))


def read_options(
    ours: argparse.Namespace,
    flags: Sequence[str],
    *,
    base: RunConfig | None = None,
    given: Mapping[str, Any] | None = None,
) -> PretrainOptions:
    """Combine our parsed options and Megatron's flags into a configuration.

    Args:
        ours: Options parsed by `option_parser`.
        flags: Megatron's flags with their values.
        base: The configuration that they change; None: the one that `ours` names.
        given: Fields that options of a verb's own set, by dotted name.

    Raises:
        ConfigError: A file, field, value or flag is wrong.
    """
    config = base or load_config(DEFAULT_CONFIG if ours.config is None else ours.config)
    overrides: dict[str, Any] = {**(given or {}), **split_flags(flags)}
    overrides.update(parse_override(text) for text in ours.set)
    overrides.update(choice_overrides("router", ours.router, ours.router_arg))
    overrides.update(choice_overrides("expert", ours.expert, ours.expert_arg))
    if ours.run_dir is not None:
        overrides["run_dir"] = ours.run_dir
    for field in _TELEMETRY_OPTIONS:
        if (value := getattr(ours, field)) is not None:
            overrides[f"telemetry.{field}"] = value
    overrides.update(adapter_overrides(ours))
    if ours.expert_failure_policy is not None:
        overrides["recovery.expert_failure"] = ours.expert_failure_policy
    config = with_own_code(config, overrides)
    return PretrainOptions(config=config, print_config=ours.print_config, debug=ours.debug)


def option_parser(**kwargs: Any) -> argparse.ArgumentParser:
    """A parser of our own options; everything else on the command line is Megatron's."""
    parser = Parser(
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        **kwargs,
    )
    parser.add_argument(
        "--config",
        metavar="FILE|PRESET",
        help=f"YAML file or preset name (default: {DEFAULT_CONFIG})",
    )
    parser.add_argument("--run-dir", metavar="DIR", help="folder for the files of the run")
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="FIELD=VALUE",
        help="override fields, as in moe.top_k=4 training.seed=2 (repeatable)",
    )
    parser.add_argument(
        "--router",
        metavar="NAME|FILE.py:FUNCTION",
        help="router of the experts: the name of one, or a function in a file of your own",
    )
    parser.add_argument(
        "--router-arg",
        action="extend",
        nargs="+",
        default=[],
        metavar="OPTION=VALUE",
        help="options of the router, as in sharpness=2.0 (repeatable)",
    )
    parser.add_argument(
        "--expert",
        metavar="NAME|FILE.py:CLASS",
        help="what an expert is: the name of a kind, or a class in a file of your own",
    )
    parser.add_argument(
        "--expert-arg",
        action="extend",
        nargs="+",
        default=[],
        metavar="OPTION=VALUE",
        help="options of the experts, as in rank=4 (repeatable)",
    )
    parser.add_argument(
        "--expert-failure-policy",
        metavar="POLICY",
        help="mask an expert with non-finite weights or gradients, or stop (default)",
    )
    _add_telemetry_options(parser)
    add_adapter_options(parser)
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved configuration and exit"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    return parser


_TELEMETRY_OPTIONS = (
    "metrics_port",
    "metrics_host",
    "metrics_expert_detail",
    "metrics_token_file",
    "metrics_tls_certificate",
    "metrics_tls_key",
    "log_format",
)
"""Fields of `telemetry` that have an option of their own."""


def _add_telemetry_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("telemetry").add_argument
    add("--metrics-port", type=int, metavar="PORT", help="serve Prometheus metrics (0: any port)")
    add("--metrics-host", metavar="ADDRESS", help="address to serve them on (default: loopback)")
    add(
        "--metrics-expert-detail",
        metavar="LEVEL",
        help="metrics per expert: none, histogram, topk or full",
    )
    add("--metrics-token-file", metavar="FILE", help="require the bearer token in this file")
    add("--metrics-tls-certificate", metavar="FILE", help="serve over TLS; needs a key as well")
    add("--metrics-tls-key", metavar="FILE", help="private key of the certificate")
    add("--log-format", metavar="FORMAT", help="text, or json for log collectors")


def main(argv: Sequence[str] | None = None, callbacks: "Sequence[Callback]" = ()) -> int:
    """Train on this rank.

    Args:
        argv: The words of the command line; None reads those of this process.
        callbacks: Further callbacks of the training loop.

    Returns:
        The exit code.
    """
    end_with_launcher()
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        options = parse_options(arguments)
        if options.print_config:
            if _rank() == 0:
                print(dump_yaml(options.config), end="")
            return 0
        run_dir = Path(options.config.run_dir)
        return explained(lambda: _train(options, callbacks), run_dir, debug=options.debug)
    except MoEError as error:
        report_error(error, debug=debug)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def report_error(error: MoEError, *, debug: bool) -> None:
    """Print an error that a user can fix: one paragraph, only once if all ranks have the same."""
    if debug:
        traceback.print_exception(error)
    elif _rank() == 0:
        print(f"error: {error}", file=sys.stderr)
    else:
        # If all ranks have the same error, rank 0 prints it and exits, and the launcher then stops
        # all others. A rank that is still running after that has an error of its own.
        time.sleep(_PATIENCE_SECONDS)
        print(f"error on rank {_rank()}: {error}", file=sys.stderr)


def _train(options: PretrainOptions, callbacks: "Sequence[Callback]") -> int:
    # Imported here because they load torch and Megatron, which --help and --print-config can skip.
    with without_collection():
        from moe_megatron.cli.logs import configure_logging
        from moe_megatron.cli.output import lasting_output
        from moe_megatron.mcore import world
        from moe_megatron.mcore.loop import engine  # noqa: F401 (collected by nobody, as the rest)
        from moe_megatron.run.ending import conclude
        from moe_megatron.run.restarting import Restarting
        from moe_megatron.run.start import RunResult, start

    attached = configure_logging(options.config, _rank())

    def attempt(config: RunConfig) -> RunResult:
        return start(
            config,
            attached=replace(attached, callbacks=[*attached.callbacks, *callbacks]),
            quiet_megatron=not options.debug,
            # Bound here: Megatron's own output, and what is printed meanwhile, goes to a file.
            say=partial(print, file=sys.stdout, flush=True),
        )

    with lasting_output(attached.health):
        if options.config.recovery.restart == "in_process" and world.size() > 1:
            result = Restarting(options.config, attempt).run()
        else:
            result = attempt(options.config)
        if _rank() == 0:
            print(f"\n{conclude(result)}")
    leave_together()
    return result.exit_code


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))
