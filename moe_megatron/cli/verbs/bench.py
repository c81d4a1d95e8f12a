"""`moe-megatron bench`: train routers, or numbers of experts, side by side and compare them."""

import argparse
import logging
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_megatron.cli.parser import Parser
from moe_megatron.config import parse_override
from moe_megatron.errors import ConfigError
from moe_megatron.files import explained_writes, replace_file, user_path
from moe_megatron.live.watching import is_watched

if TYPE_CHECKING:
    from moe_megatron.benchmarks.case import Case
    from moe_megatron.benchmarks.crew import Ended, Task
    from moe_megatron.benchmarks.record import BenchFolder
    from moe_megatron.benchmarks.setup import Setup

_KINDS = ("routers", "experts")
_EPILOG = """\
Each case (a router, or a number of experts) is trained with every seed in Megatron's loop, on the
demo corpus, with equally wide experts and equally many of them a token. Results are one file a run
in --out: after Ctrl-C the same command goes on where it was. The step times are taken afterwards,
one at a time and in alternating order; on a quiet machine take them with --only-step-time.

examples:
  moe-megatron bench routers
  moe-megatron bench routers --routers top_k,relu,my_router.py:sharp --seeds 5
  moe-megatron bench experts --experts 8,32,64,128"""

FAILED = 1
"""Exit code of a bench some of whose runs failed."""

_SIZES: dict[str, tuple[type, str]] = {
    "steps": (int, "updates of each run"),
    "top_k": (int, "experts for each token"),
    "batch_size": (int, "sequences of a batch"),
    "sequence_length": (int, "tokens of a sequence"),
    "learning_rate": (float, "peak of the cosine schedule"),
    "num_layers": (int, "transformer layers"),
    "hidden_size": (int, "width of the residual stream"),
    "expert_hidden_size": (int, "inner width of an expert"),
    "train_characters": (int, "text of each domain to train on"),
    "held_out": (int, "documents of each domain to measure the loss on"),
}
"""Fields of the setup that have an option."""


def run(argv: Sequence[str]) -> int:
    """Run the verb.

    Args:
        argv: What follows `moe-megatron bench`.

    Returns:
        0 if every run has a result.

    Raises:
        MoEError: An argument is wrong, or the folder cannot be used.
    """
    options = _parser().parse_args(argv)
    command = f"moe-megatron bench {shlex.join(argv)}"
    # Imported here because --help can do without them.
    from moe_megatron.benchmarks.case import cases_of, try_training
    from moe_megatron.benchmarks.record import BenchFolder

    setup, of_experts = _setup(options), options.kind == "experts"
    _check(options)
    given = options.routers
    routers = (["top_k"] if of_experts else []) if given is None else _names(given)
    if given is not None and not routers:
        raise ConfigError(
            f"--routers names none ('{given}'); give names, as in --routers top_k,relu, or leave "
            f"it out for {'top_k' if of_experts else 'all'}."
        )
    if of_experts and len(routers) != 1:
        raise ConfigError("bench experts takes one router, as in --routers top_k.")
    cases = cases_of(routers, _router_options(options.router_arg), _experts(options, of_experts))
    folder = BenchFolder(options.out or Path("runs") / f"bench-{options.kind}")
    for case in cases:
        try_training(setup, case)
    folder.claim(setup, options.kind)
    try:
        failures = _make_runs(options, folder, setup, cases)
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on:\n  {command}", file=sys.stderr)
        raise
    _write(folder, setup, cases, command, failures, of_experts=of_experts)
    return FAILED if failures else 0


def _make_runs(
    options: argparse.Namespace, folder: "BenchFolder", setup: "Setup", cases: "list[Case]"
) -> list[str]:
    """Make what is missing; returns what failed, and why."""
    from moe_megatron.benchmarks.crew import run_tasks, time_tasks

    failures: list[str] = []
    if not options.only_step_time:
        tasks = run_tasks(folder, setup, cases, options.seeds)
        failures += _work(tasks, options.jobs or _jobs(), "training")
    if options.turns:
        tasks = time_tasks(folder, setup, cases, options.turns)
        failures += _work(tasks, 1, "step times")
    return failures


def _work(tasks: "list[Task]", jobs: int, label: str) -> list[str]:
    from moe_megatron.benchmarks.crew import work

    failures: list[str] = []
    if not tasks:
        return failures
    with _telling(label, len(tasks)) as told:
        for ended in work(tasks, jobs):
            told(ended)
            if ended.failure:
                failures.append(f"{ended.task.name}: {ended.failure}")
    return failures


@contextmanager
def _telling(label: str, total: int) -> "Iterator[Callable[[Ended], None]]":
    """A bar where somebody watches, else a line for each run; what training logs stays away."""
    from moe_megatron.live.bar import live_bar  # loads rich

    loggers = logging.getLogger("moe_megatron")
    before, done = loggers.level, 0
    loggers.setLevel(logging.ERROR)

    def line(ended: "Ended") -> None:
        nonlocal done
        done += 1
        how = f": FAILED, {ended.failure}" if ended.failure else ""
        print(f"{done} of {total}  {ended.task.name}{how}", file=sys.stderr, flush=True)

    try:
        if not is_watched():
            yield line
            return
        with live_bar(label, total, "{task.fields[last]}", of_bytes=False, last="") as change:

            def advance(ended: "Ended") -> None:
                nonlocal done
                done += 1
                change(completed=done, last=ended.task.name)

            yield advance
    finally:
        loggers.setLevel(before)


def _write(
    folder: "BenchFolder",
    setup: "Setup",
    cases: "list[Case]",
    command: str,
    failures: list[str],
    *,
    of_experts: bool,
) -> None:
    """Write table and page, and show the table."""
    from moe_megatron.benchmarks.page import render
    from moe_megatron.benchmarks.table_rows import rows_of
    from moe_megatron.benchmarks.tables import document, table

    rows = rows_of(folder, cases)
    for text in failures:
        print(f"failed: {text}", file=sys.stderr)
    if not rows:
        print("no run has a result yet, so there is no table.", file=sys.stderr)
        return
    made = {
        "bench.md": document(setup, rows, command, failures, of_experts=of_experts),
        "bench.html": render(setup, rows, command, failures, of_experts=of_experts),
    }
    for name, text in made.items():
        with explained_writes(folder.path / name):
            replace_file(folder.path / name, [text.encode()])
    print(table(setup, rows, of_experts=of_experts))
    print(folder.path / "bench.html")


def _setup(options: argparse.Namespace) -> "Setup":
    from moe_megatron.benchmarks.setup import Setup

    given = {name: getattr(options, name) for name in (*_SIZES, "capacity_factor")}
    return Setup(**{name: value for name, value in given.items() if value is not None})


def _check(options: argparse.Namespace) -> None:
    from moe_megatron.benchmarks.statistics import MOST_SEEDS

    if not 1 <= options.seeds <= MOST_SEEDS:
        raise ConfigError(f"--seeds ({options.seeds}) must be 1 to {MOST_SEEDS}.")
    if options.turns < 0:
        raise ConfigError(f"--turns ({options.turns}) must be at least 0, which measures none.")
    if options.only_step_time and not options.turns:
        raise ConfigError("--only-step-time with --turns 0 leaves nothing to do; leave one out.")
    if options.jobs is not None and options.jobs < 1:
        raise ConfigError(f"--jobs ({options.jobs}) must be at least 1.")


def _jobs() -> int:
    """Processes that train at once: one for a GPU, else one for each core."""
    from moe_megatron.platform.device import available_cores, detect_device

    return 1 if detect_device().value.kind == "cuda" else available_cores()


def _names(text: str) -> list[str]:
    return [name for it in text.split(",") if (name := it.strip())]


def _experts(options: argparse.Namespace, of_experts: bool) -> list[int]:
    words = _names(options.experts or ("8,32,64,128" if of_experts else "8"))
    if not all(word.isdecimal() and int(word) for word in words) or not words:
        raise ConfigError(
            f"--experts needs numbers of at least 1, as in --experts 8,32, not '{options.experts}'."
        )
    numbers = [int(word) for word in words]
    if len(set(numbers)) < len(numbers):
        raise ConfigError(f"--experts ({options.experts}) names a number twice; keep one.")
    if not of_experts and len(numbers) > 1:
        raise ConfigError(
            f"bench routers takes one number of experts, not '{options.experts}'; numbers are "
            "compared by `moe-megatron bench experts`."
        )
    return numbers


def _router_options(words: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The options of each router, from ROUTER.OPTION=VALUE."""
    found: dict[str, dict[str, Any]] = {}
    for word in words:
        name, value = parse_override(word)
        router, dot, option = name.rpartition(".")
        if not dot:
            raise ConfigError(
                f"--router-arg '{word}' does not say whose option it is; write it as in "
                "--router-arg top_p.threshold=0.3"
            )
        found.setdefault(router, {})[option] = value
    return found


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="moe-megatron bench",
        description="Train routers, or numbers of experts, side by side and compare them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("kind", choices=_KINDS, help="what is compared")
    add("--routers", metavar="A,B,...", help="names, or my_router.py:fn (default: all)")
    add(
        "--router-arg",
        action="append",
        default=[],
        metavar="ROUTER.OPTION=VALUE",
        help="an option of a router (repeatable)",
    )
    add("--experts", metavar="N,...", help="experts in a layer (default: 8, or 8,32,64,128)")
    add("--seeds", type=int, default=3, help="runs of each case (default: 3)")
    add("--out", type=user_path, metavar="DIR", help="folder of results (runs/bench-KIND)")
    add("--jobs", type=int, help="processes at once, a thread each (default: one for each core)")
    add("--turns", type=int, default=3, help="step times of each case; 0: none (default: 3)")
    add("--only-step-time", action="store_true", help="train nothing but for the step times")
    add("--capacity-factor", type=float, help="drop what exceeds it (default: drop nothing)")
    for name, (kind, words) in _SIZES.items():
        add(f"--{name.replace('_', '-')}", type=kind, metavar="N", help=words)
    add("--debug", action="store_true", help="show tracebacks of errors")
    return parser
