"""`moe-megatron dashboard audit`: who did what on a dashboard, and what came of it."""

import argparse
import time
from collections.abc import Sequence

from moe_megatron.cli.dashboard_database import add_database
from moe_megatron.cli.parser import Parser
from moe_megatron.errors import ConfigError

_NEWEST = 100


def run(argv: Sequence[str]) -> int:
    """Print the newest entries of the audit log.

    Args:
        argv: What follows `moe-megatron dashboard audit`.

    Returns:
        The exit code.

    Raises:
        ConfigError: The database cannot be opened.
        BackendUnavailableError: Its server does not answer.
    """
    options = _parser().parse_args(argv)
    if options.last < 1:
        raise ConfigError(f"--last must be 1 or more, not {options.last}.")
    # Imported here: `--help` need not load a library for databases.
    from moe_megatron.webapp.access.audit import Audit
    from moe_megatron.webapp.access.database import open_database

    for it in Audit(open_database(options.database)).newest(options.last):
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(it.time))
        about = " ".join(filter(None, (it.what, it.run)))
        print(f"{when}  {it.name:<16} {it.address or '-':<15}  {about}: {it.answer}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="moe-megatron dashboard audit",
        description="Who logged in, asked something of a run, or made or took away a token; when, "
        "from where, and what came of it.",
    )
    add = parser.add_argument
    add("--last", type=int, default=_NEWEST, metavar="N", help=f"entries (default: {_NEWEST})")
    add_database(parser, "where they are")
    add("--debug", action="store_true", help="show tracebacks of errors")
    return parser
