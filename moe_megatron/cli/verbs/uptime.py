"""`moe-megatron uptime`: say what became of runs, and where their time went."""

import argparse
import json
from collections.abc import Sequence

from rich.console import Console

from moe_megatron.cli.parser import Parser
from moe_megatron.cli.uptime_table import kinds_of_lost_time, show
from moe_megatron.files import user_path
from moe_megatron.run.uptime import uptime

_DESCRIPTION = """\
Say what became of a run that trains, is done or has died, and account for every second of it.

  goodput        kept steps / wall time, from the launch to the end or to now
  ETTR           1 - lost / wall time (effective training time ratio)

lost are:
{lost}

neither kept nor lost are evaluation, and other: logging, telemetry, the end of processes."""

_EPILOG = """\
examples:
  moe-megatron uptime runs/demo_moe
  moe-megatron uptime runs/a runs/b --json"""


def run(argv: Sequence[str]) -> int:
    """Run the verb.

    Args:
        argv: What follows `moe-megatron uptime`.

    Returns:
        The exit code.

    Raises:
        DataError: A folder holds no journal of a run, or a damaged metrics.jsonl.
    """
    parser = Parser(
        prog="moe-megatron uptime",
        description=_DESCRIPTION.format(lost="\n".join(kinds_of_lost_time())),
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "run_dirs", type=user_path, nargs="+", metavar="RUN_DIR", help="folder of a run"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, one object a run")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    options = parser.parse_args(argv)
    runs = [uptime(folder) for folder in options.run_dirs]
    if options.json:
        print(json.dumps([found.to_dict() for found in runs], indent=2))
    else:
        show(runs, Console())
    return 0
