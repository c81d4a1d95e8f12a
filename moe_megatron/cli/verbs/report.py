"""`moe-megatron report`: write the HTML report of a run, or of several."""

import argparse
from collections.abc import Sequence

from moe_megatron.cli.parser import Parser
from moe_megatron.files import user_path
from moe_megatron.webapp.report import write_report

_EPILOG = """\
examples:
  moe-megatron report runs/demo_moe --output report.html
  moe-megatron report runs/a runs/b --output compared.html"""


def run(argv: Sequence[str]) -> int:
    """Run the verb.

    Args:
        argv: What follows `moe-megatron report`.

    Returns:
        The exit code.

    Raises:
        ConfigError: There are too many runs.
        DataError: A run's files are missing or damaged.
    """
    parser = Parser(
        prog="moe-megatron report",
        description="Write one HTML file that needs no server: the dashboard's page, and what it "
        "shows of a run; of several, it compares them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run_dirs", type=user_path, nargs="+", metavar="RUN_DIR", help="folder of a run")
    add(
        "--output",
        type=user_path,
        help="file to write (RUN_DIR/report.html; of several runs, comparison.html in the first)",
    )
    add("--debug", action="store_true", help="show tracebacks of errors")
    options = parser.parse_args(argv)
    print(write_report(options.run_dirs, options.output))
    return 0
