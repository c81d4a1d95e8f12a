"""`moe-megatron grafana`: write, check or push Grafana dashboards and Prometheus rules."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from moe_megatron.cli.parser import Parser
from moe_megatron.dashboards.artifacts import dashboard_json, repository_files
from moe_megatron.dashboards.build import differences, write_files
from moe_megatron.dashboards.push import Grafana
from moe_megatron.errors import EXIT_CODE, BackendUnavailableError
from moe_megatron.files import user_path
from moe_megatron.telemetry.exporter.access_token import check_token, read_token_file

TOKEN_VARIABLE = "GRAFANA_TOKEN"

_EPILOG = """\
examples:
  moe-megatron grafana build
  moe-megatron grafana build --check
  GRAFANA_TOKEN=... moe-megatron grafana push --url https://grafana.example.org"""


def run(argv: Sequence[str]) -> int:
    """Run the verb.

    Args:
        argv: What follows `moe-megatron grafana`.

    Returns:
        The exit code: 2 when `build --check` finds faults.

    Raises:
        ConfigError: An option or the token cannot be used.
        BackendUnavailableError: Grafana does not answer or refuses; a package is missing.
    """
    options = _parser().parse_args(argv)
    if options.action == "push":
        return _push(options)
    return _check(options.folder) if options.check else _build(options.folder)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="moe-megatron grafana",
        description="Grafana dashboards and Prometheus rules.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    build = actions.add_parser("build", help="write dashboards, provisioning and rules")
    build.add_argument(
        "--check",
        action="store_true",
        help="write nothing; fail if files differ or query metrics that the catalog does not have",
    )
    build.add_argument(
        "--folder",
        type=user_path,
        default=Path("grafana"),
        metavar="DIR",
        help="folder to write (default: grafana)",
    )
    push = actions.add_parser("push", help="send the dashboards to a Grafana server")
    push.add_argument("--url", required=True, help="address of Grafana")
    push.add_argument(
        "--token-file",
        type=user_path,
        metavar="FILE",
        help=f"file with the token of a service account (default: the variable {TOKEN_VARIABLE})",
    )
    push.add_argument("--target-folder", metavar="UID", help="uid of the folder to store them in")
    push.add_argument(
        "--namespace", default="default", help="namespace of the organisation (default: default)"
    )
    for action in (build, push):
        action.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    return parser


def _build(folder: Path) -> int:
    written = write_files(folder, repository_files())
    for path in written:
        print(path)
    if not written:
        print(f"{folder} is up to date")
    return 0


def _check(folder: Path) -> int:
    try:
        from moe_megatron.dashboards.check import check
    except ModuleNotFoundError as error:
        if error.name != "promql_parser":
            raise
        raise BackendUnavailableError(
            "grafana build --check needs the package promql-parser; install it with "
            "pip install promql-parser."
        ) from error
    faults = check(dashboard_json()) + differences(folder, repository_files())
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    if not faults:
        print(f"{folder}: {len(repository_files())} files are up to date, no faults")
    return EXIT_CODE if faults else 0


def _push(options: argparse.Namespace) -> int:
    server = Grafana(options.url, _read_token(options.token_file), options.namespace)
    for dashboard in dashboard_json().values():
        print(server.push(dashboard, options.target_folder))
    return 0


def _read_token(file: Path | None) -> str | None:
    if file is not None:
        return read_token_file(file, "--token-file")
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not token:
        return None
    check_token(token, f"the variable {TOKEN_VARIABLE}")
    return token
