"""`moe-megatron slurm render` and `submit`: from a run's configuration to a batch job."""

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_megatron.cli.choices import own_code_words
from moe_megatron.cli.pretrain import DEFAULT_CONFIG, option_parser, read_options
from moe_megatron.cli.words import read_words
from moe_megatron.config import CONFIG_FILE, RunConfig, apply_overrides
from moe_megatron.errors import ConfigError
from moe_megatron.files import user_path
from moe_megatron.platform.slurm.node_layout import Layout, check_layout
from moe_megatron.platform.slurm.script import BatchJob
from moe_megatron.platform.slurm.script import render as render_script
from moe_megatron.platform.slurm.submit import FOLDER, find_env, write_job
from moe_megatron.platform.slurm.submit import submit as submit_script

_EPILOG = """\
examples:
  moe-megatron slurm render --config mixtral_8x7b --nodes 8 --gpus-per-node 8
  moe-megatron slurm submit --config my_run.yaml --nodes 2 --gpus-per-node 8 --time 08:00:00
  moe-megatron slurm submit --resume runs/my_run --nodes 4 --gpus-per-node 8"""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Order:
    """What the command line asks for."""

    config: RunConfig
    layout: Layout
    options: argparse.Namespace
    words: Sequence[str]
    """The command line itself."""

    def job(self, *, words: Sequence[str], **fields: str) -> BatchJob:
        ours = self.options
        return BatchJob(
            name=ours.job_name or Path(self.config.run_dir).name,
            run_dir=self.config.run_dir,
            layout=self.layout,
            words=words,
            time=ours.time,
            grace_seconds=ours.grace,
            cores_per_process=ours.cores_per_process,
            directives=ours.sbatch,
            **fields,
        )


def render(argv: Sequence[str]) -> int:
    """Print the batch script of a run; it sources the files of examples/slurm."""
    order = _read(argv, "render")
    made_by = f"moe-megatron slurm render {shlex.join(order.words)}"
    print(render_script(order.job(words=_rank_words(order.options), made_by=made_by)), end="")
    return 0


def submit(argv: Sequence[str]) -> int:
    """Write the job into the run folder, submit it and print its number."""
    from moe_megatron.run.folder import fresh_run_dir, write_config

    order = _read(argv, "submit")
    env = find_env(order.options.env)
    config = order.config
    if order.options.resume is None:
        config = apply_overrides(config, {"run_dir": str(fresh_run_dir(Path(config.run_dir)))})
    run_dir = Path(config.run_dir)
    file = write_config(config, run_dir)
    order = _Order(config=config, layout=order.layout, options=order.options, words=order.words)
    folder = run_dir / FOLDER
    words = ["--config", str(file), *own_code_words(config.moe)]
    job = order.job(words=words, log=str(folder / "%j.log"), folder=str(folder))
    numbers = submit_script(write_job(job, run_dir, env), jobs=order.options.chain)
    for number in numbers:
        print(f"job {number}: {order.layout.nodes} nodes, {order.layout.world_size} ranks")
    print(f"watch it with: moe-megatron slurm status {run_dir}")
    return 0


def _read(argv: Sequence[str], action: str) -> _Order:
    parser = option_parser(prog=f"moe-megatron slurm {action}")
    parser.description = f"{action.capitalize()} the batch job of a run. " + (
        "Every option of `moe-megatron train` is accepted in addition."
    )
    parser.epilog = _EPILOG
    _add_options(parser, submits=action == "submit")
    ours, flags = read_words(parser, argv)
    _check(ours)
    if (resumed := getattr(ours, "resume", None)) is not None:
        if not (resumed / CONFIG_FILE).is_file():
            raise ConfigError(f"{resumed} holds no run to resume ({CONFIG_FILE} is missing).")
        if ours.config is None:
            ours.config = str(resumed / CONFIG_FILE)
        ours.run_dir = str(resumed)
    config = read_options(ours, flags).config
    ours.flags = flags
    gpus, processes = ours.gpus_per_node, ours.processes_per_node
    per_node = processes if gpus is None else gpus
    layout = Layout(
        nodes=ours.nodes, processes_per_node=per_node, gpus=ours.gpus_per_node is not None
    )
    check_layout(config, layout)
    return _Order(config=config, layout=layout, options=ours, words=list(argv))


def _check(ours: argparse.Namespace) -> None:
    if (ours.gpus_per_node is None) == (ours.processes_per_node is None):
        raise ConfigError(
            "give either --gpus-per-node, or for nodes without GPUs --processes-per-node."
        )
    for name in ("grace", "cores_per_process", "chain"):
        if getattr(ours, name, 1) < 1:
            raise ConfigError(
                f"--{name.replace('_', '-')} must be at least 1, not {getattr(ours, name)}."
            )


def _rank_words(ours: argparse.Namespace) -> list[str]:
    """What the ranks are told: the words of the command line that are not about the job."""
    words = ["--config", DEFAULT_CONFIG if ours.config is None else ours.config]
    for text in ours.set:
        words += ["--set", text]
    for option in ("router", "expert"):
        given = getattr(ours, option)
        words += [] if given is None else [f"--{option}", given]
        for text in getattr(ours, f"{option}_arg"):
            words += [f"--{option}-arg", text]
    return [*words, *ours.flags]


def _add_options(parser: argparse.ArgumentParser, *, submits: bool) -> None:
    group = parser.add_argument_group("job")
    add = group.add_argument
    add("--nodes", type=int, required=True, metavar="N", help="number of nodes")
    add("--gpus-per-node", type=int, metavar="N", help="GPUs, and ranks, of each node")
    add("--processes-per-node", type=int, metavar="N", help="ranks of each node without GPUs")
    add("--cores-per-process", type=int, default=1, metavar="N", help="their cores (default: 1)")
    add("--time", default="24:00:00", help="time limit of one attempt (default: 24:00:00)")
    add(
        "--grace",
        type=int,
        default=600,
        metavar="SECONDS",
        help="how long before the limit the ranks save and end (default: 600)",
    )
    add("--job-name", metavar="NAME", help="name of the job (default: that of the run folder)")
    add(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="an option of sbatch, such as --sbatch=--partition=gpu (repeatable)",
    )
    if submits:
        add("--resume", type=user_path, metavar="DIR", help="go on with the run in this folder")
        add("--env", type=user_path, metavar="FILE", help="settings of the site (examples/slurm)")
        add("--chain", type=int, default=1, metavar="N", help="jobs that follow each other")
