"""`moe-megatron dashboard`: show runs in a browser, while they train and afterwards."""

import argparse
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from moe_megatron.cli import dashboard_audit, dashboard_token
from moe_megatron.cli.dashboard_database import add_database
from moe_megatron.cli.parser import Parser
from moe_megatron.errors import ConfigError
from moe_megatron.files import user_path
from moe_megatron.live.dashboard_process import PORT
from moe_megatron.live.watching import is_watched

if TYPE_CHECKING:
    from moe_megatron.webapp.serving import DashboardServer
    from moe_megatron.webapp.workers.supervisor import Supervisor

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
        BackendUnavailableError: The database of those who may look, or Redis, does not answer.
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
    server = _server(options, folders, argv)
    if options.worker is not None:
        _serve(server, until_eof=True)
        return 0
    for folder in folders:
        if not folder.exists():
            print(f"{folder} does not exist yet; its runs are shown when it does", flush=True)
    print(f"dashboard  {server.url}\nCtrl-C stops it", flush=True)
    if options.open and is_watched():
        webbrowser.open(server.url)
    _serve(server, until_eof=options.until_eof)
    print("stopped", flush=True)
    return 0


def _server(
    options: argparse.Namespace, folders: Sequence[Path], argv: Sequence[str]
) -> "DashboardServer | Supervisor":
    """What serves: one process, several, or one of those."""
    # Imported here: `moe-megatron dashboard --help` need not load a web server.
    from moe_megatron.webapp.price import Price
    from moe_megatron.webapp.serving import DashboardOptions, DashboardServer
    from moe_megatron.webapp.view import load_view
    from moe_megatron.webapp.workers.shared_inspector import SharedInspector
    from moe_megatron.webapp.workers.supervisor import Supervisor

    price = None
    if options.price_per_hour is not None:
        price = Price(per_hour=options.price_per_hour, currency=options.currency)
    for spec in options.view:
        load_view(spec)
    shown = DashboardOptions(
        folders=folders,
        models=options.model,
        host=options.host,
        port=options.port,
        names=options.allow_host,
        show_tokens=options.show_tokens,
        price=price,
        database=options.database,
        redis=options.redis,
        proxies=options.proxy,
    )
    if options.worker is not None:
        descriptor, inspector = options.worker
        listening = socket.socket(fileno=descriptor)
        return DashboardServer(shown, listening=listening, inspector=SharedInspector(inspector))
    if options.workers != 1:
        return Supervisor(shown, argv, options.workers)
    return DashboardServer(shown)


def _serve(server: "DashboardServer | Supervisor", *, until_eof: bool) -> None:
    if until_eof:
        threading.Thread(target=_end_with_input, args=[server.end], daemon=True).start()
    with suppress(KeyboardInterrupt):
        server.serve()


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
    add_database(
        parser,
        "whose tokens let people in, as `moe-megatron dashboard token` makes them; needed where "
        "others can reach the dashboard",
        required=False,
    )
    add(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="processes that serve it, for many who look (default: 1)",
    )
    add(
        "--redis",
        metavar="redis://HOST:PORT",
        help="a Redis server, so that one process reads a run for all; its password is in "
        "REDIS_PASSWORD, or in a file that REDIS_PASSWORD_FILE names",
    )
    add(
        "--proxy",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="a proxy (or network) that is believed when it says who asks (repeatable)",
    )
    # What the supervisor of several processes gives each: a socket, and who asks models.
    add("--worker", type=_worker, help=argparse.SUPPRESS)
    add("--debug", action="store_true", help="show tracebacks of errors")
    return parser


def _worker(text: str) -> tuple[int, Path]:
    """The number of a socket that listens, and the path of one where models are asked."""
    descriptor, _, inspector = text.partition(":")
    return int(descriptor), Path(inspector)


def _end_with_input(end: Callable[[], None]) -> None:
    """End when whoever started this process is gone."""
    while sys.stdin.buffer.read(4096):
        pass
    end()
