"""`moe-megatron dashboard`: show runs in a browser, while they train and afterwards."""

import argparse
import sys
import threading
import webbrowser
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from moe_megatron.cli import dashboard_audit, dashboard_token
from moe_megatron.cli.parser import Parser
from moe_megatron.errors import ConfigError
from moe_megatron.files import user_path
from moe_megatron.live.dashboard_process import PORT
from moe_megatron.live.watching import is_watched

_RUNS = Path("runs")
_ACTIONS = {"token": dashboard_token.run, "audit": dashboard_audit.run}
"""First words that are no folder; ./token is one."""

_EPILOG = """\
example:
  moe-megatron train --run-dir runs/a &
  moe-megatron dashboard runs/a

who may look, if others can reach it:
  moe-megatron dashboard token --help
  moe-megatron dashboard audit --help"""


def run(argv: Sequence[str]) -> int:
    """Run the verb, until Ctrl-C or SIGTERM.

    Args:
        argv: What follows `moe-megatron dashboard`.

    Returns:
        The exit code.

    Raises:
        ConfigError: The port is invalid or taken, a folder is none, or the price is none.
        BackendUnavailableError: The database of those who may look does not answer.
    """
    if argv and argv[0] in _ACTIONS:
        return _ACTIONS[argv[0]](argv[1:])
    options = _parser().parse_args(argv)
    folders: list[Path] = options.run_dirs or [_RUNS]
    for folder in options.model:
        if not folder.is_dir():
            raise ConfigError(f"--model {folder} is no folder; give that of a model or checkpoint.")
    for folder in folders:
        if folder.exists() and not folder.is_dir():
            raise ConfigError(
                f"{folder} is a file; give the folder of a run, or a folder that holds runs."
            )
    # Imported here: `moe-megatron dashboard --help` need not load a web server.
    from moe_megatron.webapp.price import Price
    from moe_megatron.webapp.serving import DashboardOptions, DashboardServer
    from moe_megatron.webapp.view import load_view

    price = None
    if options.price_per_hour is not None:
        price = Price(per_hour=options.price_per_hour, currency=options.currency)
    for spec in options.view:
        load_view(spec)
    server = DashboardServer(
        DashboardOptions(
            folders=folders,
            models=options.model,
            host=options.host,
            port=options.port,
            names=options.allow_host,
            show_tokens=options.show_tokens,
            price=price,
            database=options.database,
        )
    )
    for folder in folders:
        if not folder.exists():
            print(f"{folder} does not exist yet; its runs are shown when it does", flush=True)
    print(f"dashboard  {server.url}\nCtrl-C stops it", flush=True)
    if options.open and is_watched():
        webbrowser.open(server.url)
    if options.until_eof:
        threading.Thread(target=_end_with_input, args=[server.end], daemon=True).start()
    with suppress(KeyboardInterrupt):
        server.serve()
    print("stopped", flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="moe-megatron dashboard",
        description="Show runs in a browser, live or long over, by a server beside them that reads "
        "their folders and changes nothing.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "run_dirs",
        type=user_path,
        nargs="*",
        metavar="RUN_DIR",
        help=f"folder of a run, or of several runs (default: {_RUNS})",
    )
    add("--port", type=int, default=PORT, help=f"port; 0 for a free one (default: {PORT})")
    add("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    add(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="name under which browsers may reach it, as of a proxy (repeatable)",
    )
    add("--no-open", dest="open", action="store_false", help="do not open a browser")
    add(
        "--view",
        action="append",
        default=[],
        metavar="FILE.py:FUNCTION",
        help="a view of your own to show (repeatable; see docs/dashboard.md)",
    )
    add(
        "--model",
        type=user_path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="a checkpoint or Hugging Face folder whose tokens' experts may be asked for, besides "
        "the checkpoints of the runs (repeatable)",
    )
    add(
        "--until-eof",
        action="store_true",
        help="end when the standard input does: for programs that start a dashboard",
    )
    add("--show-tokens", action="store_true", help="show text of tokens of the training data")
    add(
        "--price-per-hour",
        type=float,
        metavar="AMOUNT",
        help="what one device costs in an hour; shows what each run has cost so far",
    )
    add("--currency", default="USD", help="of the price (default: USD)")
    add(
        "--database",
        metavar="FILE",
        help="whose tokens let people in, as `moe-megatron dashboard token` makes them; needed "
        "where others can reach the dashboard (a file, or postgresql+psycopg://USER@HOST/NAME)",
    )
    add("--debug", action="store_true", help="show tracebacks of errors")
    return parser


def _end_with_input(end: Callable[[], None]) -> None:
    """End when whoever started this process is gone."""
    while sys.stdin.buffer.read(4096):
        pass
    end()
