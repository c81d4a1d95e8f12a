"""`moe-megatron slurm verdict`, `check-node`, `node`: what batch scripts call inside of a job."""

import os
from collections.abc import Sequence
from pathlib import Path

from moe_megatron.cli.parser import Parser
from moe_megatron.cli.pretrain import option_parser, program, read_options
from moe_megatron.cli.verbs.slurm.watching import target_of
from moe_megatron.cli.words import grouped_by_flag, read_words
from moe_megatron.files import user_path
from moe_megatron.platform.slurm.finding import healthy
from moe_megatron.platform.slurm.gpu_health import examine_gpus
from moe_megatron.platform.slurm.node import Place, run_node, torchrun_words
from moe_megatron.platform.slurm.node_health import Needs, examine
from moe_megatron.platform.slurm.run_progress import read_progress
from moe_megatron.platform.slurm.targets import remove_targets
from moe_megatron.platform.slurm.verdict import FAULT, judge, judge_before, meaning
from moe_megatron.run.owner import outlast


def verdict(argv: Sequence[str]) -> int:
    """Judge a run: the exit code is that of the contract, and the reason is printed."""
    parser = option_parser(prog="moe-megatron slurm verdict")
    parser.description = "Judge a run by its checkpoints and its journal."
    parser.add_argument("run", nargs="?", type=user_path, metavar="RUN", help="folder of a run")
    parser.add_argument("--job", metavar="ID", help="judge the attempts of this job alone")
    parser.add_argument("--before", action="store_true", help="say whether to make an attempt")
    parser.add_argument("--stopped", action="store_true", help="the attempt was asked to stop")
    parser.add_argument(
        "--remove-target",
        action="store_true",
        help="remove the Prometheus target of an attempt that was killed, unless it failed",
    )
    ours, flags = read_words(parser, argv)
    discovery: str | None = None
    if ours.run is not None:
        run_dir, target = ours.run, target_of(ours.run)
    else:
        config = read_options(ours, flags).config
        run_dir, target = Path(config.run_dir), config.training.train_steps
        discovery = config.telemetry.metrics_discovery_dir
    progress = read_progress(run_dir, target, ours.job, stopped=ours.stopped)
    said = (judge_before if ours.before else judge)(progress)
    print(f"verdict {said.code}, {meaning(said.code)}: {said.reason}", flush=True)
    if ours.remove_target and said.code != FAULT:
        remove_targets(run_dir, None if discovery is None else Path(discovery))
    return said.code


def check_node(argv: Sequence[str]) -> int:
    """Examine this node; the exit code is 1 if it is not well."""
    parser = Parser(
        prog="moe-megatron slurm check-node",
        description="Examine this node: exit code 0 if it is well, 1 if not.",
    )
    add = parser.add_argument
    add("--gpus", type=int, default=0, metavar="N", help="GPUs that must be there")
    add(
        "--disk",
        type=user_path,
        action="append",
        default=[],
        help="folder to write to (repeatable)",
    )
    add("--free-gib", type=float, default=1.0, metavar="N", help="free space there (default: 1)")
    add("--memory-gib", type=float, default=1.0, metavar="N", help="memory (default: 1)")
    add("--clock", type=float, metavar="TIME", help="what the time is, in seconds since 1970")
    add("--clock-seconds", type=float, default=60.0, metavar="N", help="tolerance (default: 60)")
    add("--dcgm-level", type=int, default=0, metavar="N", help="level of dcgmi diag (default: 0)")
    add("--site-check", metavar="PROGRAM", help="a program of the site that exits with 0 if well")
    add("--debug", action="store_true", help="show tracebacks of errors")
    options = parser.parse_args(argv)
    needs = Needs(
        disks=tuple(options.disk),
        free_gib=options.free_gib,
        memory_gib=options.memory_gib,
        clock=options.clock,
        clock_seconds=options.clock_seconds,
        site_check=options.site_check,
    )
    findings = [*examine(needs), *examine_gpus(options.gpus, options.dcgm_level)]
    print("\n".join(map(str, findings)))
    return 0 if healthy(findings) else 1


def node(argv: Sequence[str]) -> int:
    """Start the ranks of this node, as one of the nodes of a job."""
    parser = option_parser(prog="moe-megatron slurm node")
    parser.description = "Start the ranks of this node with torchrun; `srun` runs it on every node."
    parser.add_argument("--processes", type=int, required=True, metavar="N", help="ranks to start")
    ours, flags = read_words(parser, argv)
    config = read_options(ours, flags).config
    place = Place.from_environment(os.environ)
    config.validate(place.nodes * ours.processes)
    if place.node == 0:
        outlast(Path(config.run_dir), place.job)
    rank_words = words_for_ranks(argv)
    words = torchrun_words(place, ours.processes, [*program(), *rank_words])
    print(f"node {place.node}: torchrun {' '.join(words)}", flush=True)
    return run_node(place, Path(config.run_dir), words, debug=ours.debug)


def words_for_ranks(argv: Sequence[str]) -> list[str]:
    """The words of `node` for the ranks, which know from torchrun how many they are."""
    groups = list(grouped_by_flag(argv, ()))
    ours = [words for words in groups if words[0].partition("=")[0] == "--processes"]
    return [word for words in groups if words not in ours for word in words]
