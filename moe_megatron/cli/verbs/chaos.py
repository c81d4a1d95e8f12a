"""`moe-megatron chaos`: harm a small training again and again, and check that it survives."""

import argparse
import dataclasses
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from moe_megatron.cli.parser import Parser
from moe_megatron.errors import ConfigError
from moe_megatron.files import user_path

if TYPE_CHECKING:
    from moe_megatron.chaos.campaign import Hit

_EPILOG = """\
The training is one of 4 processes on this machine (test_tiny, TP 2 x EP 2). It is harmed at random
moments and started again as a batch system would do. In the end its weights and optimizer must be
equal, to the bit, to those of a training that nobody touched, and nothing may be left behind.
Filling a disk needs root, for small disks in memory; without it those harms are left out.

example:
  moe-megatron chaos --hits 10 --steps 200"""

FAILED = 1
"""Exit code of a campaign that found something wrong."""


def run(argv: Sequence[str]) -> int:
    """Run the verb.

    Args:
        argv: What follows `moe-megatron chaos`.

    Returns:
        0 if the training survived everything.

    Raises:
        MoEError: The campaign cannot take place.
    """
    options = _parser().parse_args(argv)
    if min(options.hits, options.steps) < 1:
        raise ConfigError("--hits and --steps must be at least 1.")
    with ExitStack() as stack:
        # As Ctrl-C: the job and its small disks do not outlive the campaign.
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        stack.callback(signal.signal, signal.SIGTERM, before)
        folder = options.output
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="moe-chaos-")))
        elif folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty; give a new folder with --output.")
        return _campaign(options, folder)


def _campaign(options: argparse.Namespace, folder: Path) -> int:
    # Imported here because --help can do without them.
    from moe_megatron.chaos.arena import arena
    from moe_megatron.chaos.campaign import Plan, run_campaign
    from moe_megatron.chaos.harm import find_harms
    from moe_megatron.chaos.table import campaign_table, hits_table
    from moe_megatron.chaos.verdict import failures
    from moe_megatron.cli.chaos_job import PROGRAM

    harms, hits = find_harms(options.harms), []
    with arena(folder, options.steps, [sys.executable, *PROGRAM]) as (harmed, untouched):
        for harm in list(harms):
            if lack := harm.needs(harmed):
                print(f"left out: {harm.name} ({lack})")
                harms.remove(harm)
        print(f"the untouched training of {options.steps} steps ...", flush=True)
        if code := untouched.run_to_the_end():
            raise ConfigError(
                f"the untouched training ended with exit code {code}; see {untouched.log} "
                "(kept with --output)."
            )
        plan = Plan(harms=harms, hits=options.hits, steps=options.steps, patience=options.patience)
        for hit in run_campaign(harmed, plan, Random(options.seed)):
            hits.append(hit)
            print(_line(hit), flush=True)
            lines = (json.dumps(dataclasses.asdict(hit)) + "\n" for hit in hits)
            (folder / "hits.jsonl").write_text("".join(lines), encoding="utf-8")
        wrong = failures(harmed, untouched.checkpoints, hits, options.hits)
        report = f"{campaign_table(harms, hits, wrong)}\n{hits_table(hits)}"
    if options.output is not None:
        (folder / "report.md").write_text(report, encoding="utf-8")
    print(f"\n{campaign_table(harms, hits, wrong)}", end="")
    return FAILED if wrong else 0


def _line(hit: "Hit") -> str:
    outcome = f"{hit.outcome}, BUT {hit.failure}" if hit.failure else hit.outcome
    seconds = "" if hit.seconds is None else f" after {hit.seconds:.1f} s"
    return f"{hit.number:4} step {hit.step:5} {hit.harm} ({hit.what}): {outcome}{seconds}"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="moe-megatron chaos",
        description="Harm a small training again and again, and check that it survives.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--hits", type=int, default=100, help="number of hits (default: 100)")
    add("--steps", type=int, default=1500, help="steps of the training (default: 1500)")
    add("--seed", type=int, default=1, help="chooses moments, order and targets (default: 1)")
    add("--harms", nargs="+", default=[], metavar="NAME", help="only these (default: all)")
    add("--patience", type=float, default=180.0, help="seconds without a step until a job is lost")
    add("--output", type=user_path, metavar="DIR", help="folder to keep report, logs and runs in")
    add("--debug", action="store_true", help="show tracebacks of errors")
    return parser
