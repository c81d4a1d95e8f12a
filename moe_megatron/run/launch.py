"""Starts a run on this machine: from its configuration to running processes.

Everything that can be checked is checked here, before a process starts. All ranks read one file,
the resolved configuration in the run folder; a batch system can be given the same file.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from moe_megatron.config import CONFIG_FILE, RunConfig, apply_overrides
from moe_megatron.experts import own_file_words, resolve
from moe_megatron.platform.choice import Choice
from moe_megatron.platform.collection import without_collection
from moe_megatron.platform.device import choose_num_processes, detect_device
from moe_megatron.platform.resiliency import require_resiliency
from moe_megatron.platform.scratch import scratch_folder
from moe_megatron.run.attempts import Attempts
from moe_megatron.run.changes import check_load
from moe_megatron.run.folder import claim_fresh
from moe_megatron.run.heartbeat import holding
from moe_megatron.run.memory_check import memory_lines
from moe_megatron.run.missing_data import data_of_run
from moe_megatron.run.owner import claim


@dataclass(frozen=True, kw_only=True, slots=True)
class Launched:
    """How the processes of a run ended."""

    code: int
    run_dir: Path
    reason: str = ""
    """Why they ended, if it was not in order."""


def launch(
    config: RunConfig,
    program: Sequence[str],
    *,
    num_processes: int | None = None,
    fresh: bool = True,
    prepared: bool = False,
    debug: bool = False,
    say: Callable[[str], None] = print,
) -> Launched:
    """Start the processes of a run and wait for them.

    Args:
        config: The run.
        program: The words with which torchrun starts the program of a rank, which reads `--config`.
        num_processes: Number of processes on this machine; None chooses it.
        fresh: If the run folder already holds a run, use the next free name instead.
        prepared: Whether the program brings its data, so that none is prepared here.
        debug: Show tracebacks and the output of Megatron and torchrun.
        say: Called with one line per automatic choice.

    Raises:
        MoEError: The run cannot start.
    """
    with scratch_folder() as scratch:  # first: whatever is imported may leave something behind
        return _launch(
            config,
            program,
            scratch,
            num_processes,
            fresh=fresh,
            prepared=prepared,
            debug=debug,
            say=say,
        )


def _launch(
    config: RunConfig,
    program: Sequence[str],
    scratch: Path,
    num_processes: int | None,
    *,
    fresh: bool,
    prepared: bool,
    debug: bool,
    say: Callable[[str], None],
) -> Launched:
    device = detect_device().value
    processes = choose_num_processes(device, num_processes)
    say(f"processes: {processes}")
    experts = fit_expert_parallelism(config, processes.value)
    if experts.value != config.parallel.expert_parallel_size:
        say(f"expert parallel size: {experts}")
    config = fitted(config, processes.value)
    _check_megatron_flags(config)
    if config.recovery.restart != "elastic":
        require_resiliency(f"recovery.restart: {config.recovery.restart}")
    wanted = Path(config.run_dir)
    if ended := check_load(config):
        say(ended)
        return Launched(code=0, run_dir=wanted)
    if config.adapter.on:  # it takes loading torch
        from moe_megatron.adapters.asked_for import check_fitting

        check_fitting(config.adapter, config.architecture)
    for line in memory_lines(config, processes.value, device):
        say(line)
    with holding(claim_fresh(wanted) if fresh else claim(wanted)) as ours:
        config = apply_overrides(config, {"run_dir": str(ours.run_dir)})
        if not prepared:
            data_of_run(config)
        file = str(ours.run_dir / CONFIG_FILE)
        words = ["--config", file, *own_file_words(config.moe)]
        shown = " ".join([*(Path(word).name for word in program), *words])
        launcher = "ft_launcher" if config.recovery.restart == "ft_launcher" else "torchrun"
        say(f"running: {launcher} --nproc-per-node {processes.value} {shown}")
        attempts = Attempts(
            config=config,
            program=program,
            num_processes=processes.value,
            claim=ours,
            scratch=scratch,
            debug=debug,
        )
        return Launched(code=attempts.run(), run_dir=ours.run_dir, reason=attempts.reason)


def fitted(config: RunConfig, num_processes: int) -> RunConfig:
    """The run as so many processes make it, with every option of its router.

    Raises:
        MoEError: They cannot.
    """
    experts = fit_expert_parallelism(config, num_processes).value
    config = apply_overrides(config, {"parallel.expert_parallel_size": experts})
    config = replace(config, moe=resolve(config.moe))
    config.validate(num_processes)
    return config


def fit_expert_parallelism(config: RunConfig, num_processes: int) -> Choice[int]:
    """Fit the configured expert parallelism to the number of processes.

    Returns:
        The configured size if it fits, else the largest size that does.
    """
    configured, parallel = config.parallel.expert_parallel_size, config.parallel
    per_expert_group = parallel.expert_tensor_size * parallel.pipeline_parallel_size
    available = num_processes // per_expert_group if num_processes % per_expert_group == 0 else 0
    if available == 0 or available % configured == 0:
        return Choice(value=configured, reason="it is configured and fits")
    fitting = math.gcd(available, config.moe.num_experts or 1)
    return Choice(
        value=fitting,
        reason=f"{configured} is configured, but does not fit {num_processes} process(es)",
    )


def _check_megatron_flags(config: RunConfig) -> None:
    # Importing Megatron takes seconds, so it is done only if Megatron flags were given.
    if config.megatron:
        with without_collection():
            from moe_megatron.mcore.loop.arguments import check_flags_exist

        check_flags_exist([f"--{flag}" for flag in config.megatron])
