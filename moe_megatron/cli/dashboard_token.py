"""`moe-megatron dashboard token`: make, list and take away what lets people into a dashboard.

A token is printed once and never stands on a command line. What each role may do is not known here.
"""

import argparse
import getpass
import os
import sys
import time
from collections.abc import Sequence

from moe_megatron.cli.dashboard_database import add_database
from moe_megatron.cli.parser import Parser
from moe_megatron.errors import ConfigError

_EPILOG = """\
examples:
  moe-megatron dashboard token ada --role operator --database access.db
  moe-megatron dashboard token --database access.db
  moe-megatron dashboard token ada --revoke --database access.db"""


def run(argv: Sequence[str]) -> int:
    """Do it.

    Args:
        argv: What follows `moe-megatron dashboard token`.

    Returns:
        The exit code.

    Raises:
        ConfigError: The name cannot be used, or the database cannot be opened.
        BackendUnavailableError: The server of the database does not answer.
    """
    options = _parser().parse_args(argv)
    if (options.role is None) == (not options.revoke) and options.name is not None:
        raise ConfigError("say what NAME may do with --role, or take the token away with --revoke.")
    # Imported here: `--help` need not load a library for databases.
    from moe_megatron.webapp.access.audit import Audit
    from moe_megatron.webapp.access.database import open_database
    from moe_megatron.webapp.access.tokens import AccessTokens

    engine = open_database(options.database, create=options.role is not None)
    tokens, audit = AccessTokens(engine), Audit(engine)
    if options.name is None:
        for known in tokens.all():
            made = time.strftime("%Y-%m-%d %H:%M", time.localtime(known.made))
            print(f"{known.user.name:<20}  {known.user.role:<10}  {made}")
        return 0
    role = options.role or "revoked"
    entry = audit.begin(name=_own_name(), what=f"token of {options.name} {role}", address="")
    try:
        if options.revoke:
            tokens.remove(options.name)
            print(f"{options.name} can no longer enter")
        else:
            print(tokens.add(options.name, options.role))
            print("It is not shown again; give it to nobody else.", file=sys.stderr)
    except ConfigError as error:
        audit.end(entry, f"refused: {error}")
        raise
    audit.end(entry, "done on the command line")
    return 0


def _own_name() -> str:
    """Of whoever uses this machine."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have none
        return str(os.getuid())


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="moe-megatron dashboard token",
        description="Make a token that lets somebody into a dashboard; without NAME, list those "
        "that there are.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("name", nargs="?", metavar="NAME", help="whom it is for")
    add(
        "--role",
        choices=("viewer", "operator"),
        help="a viewer looks; an operator may also ask a run for a checkpoint, or to stop",
    )
    add("--revoke", action="store_true", help="take the token and its sessions away")
    add_database(parser, "where it is kept")
    add("--debug", action="store_true", help="show tracebacks of errors")
    return parser
