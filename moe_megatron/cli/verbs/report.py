"""`moe-megatron report`: write the HTML report of a run."""

import argparse
from collections.abc import Sequence

from moe_megatron.cli.parser import Parser
from moe_megatron.files import user_path
from moe_megatron.webapp.report import write_report

_EPILOG = """\
example:
  moe-megatron report runs/demo_moe --output report.html"""


def run(argv: Sequence[str]) -> int:
    """Run the verb.

    Args:
        argv: What follows `moe-megatron report`.

    Returns:
        The exit code.

    Raises:
        DataError: The run's files are missing or damaged.
    """
    parser = Parser(
        prog="moe-megatron report",
        description="Write one HTML file that needs no server: the dashboard's page, and what it "
        "shows of a run.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_dir", type=user_path, metavar="RUN_DIR", help="folder of a run")
    parser.add_argument("--output", type=user_path, help="file to write (RUN_DIR/report.html)")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    options = parser.parse_args(argv)
    print(write_report(options.run_dir, options.output))
    return 0
