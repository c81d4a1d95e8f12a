"""One pretraining run on this rank: open the sinks, hand over to the engine, keep the records.

Every way to train comes through `pretrain`: the command line, `torchrun pretrain_moe.py` and
`MoETrainer`. It does not parse arguments and prints nothing but through sinks.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from moe_megatron.config import RunConfig, apply_overrides, dump_yaml, load_config
from moe_megatron.errors import CheckpointError, ConfigError
from moe_megatron.mcore import world
from moe_megatron.mcore.loop import engine
from moe_megatron.mcore.loop.callbacks import Callback
from moe_megatron.mcore.loop.engine import JobOutcome, ModelHook, TrainingJob
from moe_megatron.mcore.state.checkpoint import CONFIG_FILE, iteration_dir, latest_checkpoint
from moe_megatron.routing import resolve
from moe_megatron.run.exporting import make_exporter
from moe_megatron.run.history import History
from moe_megatron.run.machine import MachineChoices
from moe_megatron.run.prepared_data import PreparedData
from moe_megatron.telemetry.exporter.prometheus_sink import PrometheusSink
from moe_megatron.telemetry.history import HistorySink
from moe_megatron.telemetry.history.location import history_address
from moe_megatron.telemetry.sinks.console import ConsoleSink
from moe_megatron.telemetry.sinks.jsonl import MetricsLog, RoutingLog
from moe_megatron.telemetry.sinks.sink_set import Sink, SinkSet

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainResult:
    """How a run went, as far as this rank knows."""

    config: RunConfig
    run_dir: Path | None
    outcome: JobOutcome
    history: History
    """Records of the run; empty off rank 0."""

    checkpoint: Path | None
    """Folder of the last step's checkpoint; None where there is none."""


def pretrain(
    config: RunConfig,
    machine: MachineChoices,
    data: PreparedData,
    *,
    run_dir: Path | None,
    extra_sinks: Sequence[Sink] = (),
    callbacks: Sequence[Callback] = (),
    model_hooks: Sequence[ModelHook] = (),
    quiet_megatron: bool = True,
) -> PretrainResult:
    """Run on this rank until training ends or a signal stops it.

    Args:
        config: What to train.
        machine: From `engine.choose_machine`.
        data: From `training.data.prepare_data`.
        run_dir: Folder of the run's files; None writes none.
        extra_sinks: More receivers of records, on rank 0.
        callbacks: Called from the loop on every rank.
        model_hooks: See `TrainingJob`.
        quiet_megatron: Send Megatron's own output to a file in `run_dir`.

    Raises:
        MoEError: The run cannot start or go on; the message names the remedy.
    """
    config = _with_vocabulary(replace(config, moe=resolve(config.moe)), data.vocab_size)
    rank, history = world.rank(), History()
    if run_dir is not None:
        _write_config(config, run_dir, rank)
    sinks, configured = None, list[Sink]()
    if rank == 0:
        configured = _configured_sinks(config, run_dir)
        sinks = SinkSet([history, *configured, *extra_sinks])
    log = run_dir / "logs" / f"rank{rank}.log" if run_dir is not None and quiet_megatron else None
    job = TrainingJob(
        config=config,
        data_paths=data.paths,
        data_cache=data.cache,
        vocab_size=config.data.vocab_size,
        end_of_document=data.end_of_document,
        validation_paths=data.validation_paths,
        tokenizer=data.tokenizer,
        run_dir=run_dir,
        sinks=sinks,
        callbacks=tuple(callbacks),
        model_hooks=tuple(model_hooks),
        megatron_log=log,
    )
    try:
        outcome = engine.run(job, machine.settings)
    except Exception:
        for sink in configured:
            if isinstance(sink, PrometheusSink):
                sink.run_failed = True
        raise
    finally:
        if sinks is not None:
            sinks.close()
    saved = job.checkpoints and iteration_dir(job.checkpoints, outcome.steps)
    return PretrainResult(
        config=config,
        run_dir=run_dir,
        outcome=outcome,
        history=history,
        checkpoint=saved if saved and saved.exists() else None,
    )


def _with_vocabulary(config: RunConfig, entries: int) -> RunConfig:
    """Say how many words the model has: those of its tokenizer, or of the checkpoint it loads.

    A model may have more words than its tokenizer; published ones often do.
    """
    folder = config.checkpoint.load and latest_checkpoint(Path(config.checkpoint.load))
    if folder and (folder / CONFIG_FILE).is_file():
        loaded = load_config(folder / CONFIG_FILE).data.vocab_size
        if entries > loaded:
            raise ConfigError(
                f"the tokenizer has {entries} words and the model in {folder} has {loaded}; set "
                "data.tokenizer to the tokenizer of that model."
            )
        entries = loaded
    return apply_overrides(config, {"data.vocab_size": entries})


def _configured_sinks(config: RunConfig, run_dir: Path | None) -> list[Sink]:
    exporter = make_exporter(config, run_dir)
    # Its view of the past comes before the logs, which rewind it; what it publishes, after them.
    sinks: list[Sink] = [] if exporter is None else [exporter.earlier]
    sinks.append(MetricsLog())
    telemetry = config.telemetry
    routing = telemetry.enabled and bool(config.moe_layers)
    if routing and telemetry.routing_log:
        sinks.append(RoutingLog())
    address = history_address(telemetry.history_address, run_dir)
    if routing and telemetry.history and address is not None:
        sinks.append(HistorySink(address))
    if exporter is not None:
        sinks.append(exporter)
    if telemetry.console:
        sinks.append(_console_sink(telemetry.console_interval, telemetry.plain_console))
    return sinks


def _console_sink(interval: int, plain: bool | None) -> ConsoleSink:
    # Bound now: Megatron's own output is redirected away from sys.stdout while it runs.
    console = Console(file=sys.stdout, force_terminal=None if plain is None else not plain)
    return ConsoleSink(interval=interval, console=console)


def _write_config(config: RunConfig, run_dir: Path, rank: int) -> None:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if rank == 0:
            (run_dir / CONFIG_FILE).write_text(dump_yaml(config), encoding="utf-8")
    except OSError as error:
        raise CheckpointError(
            f"the run directory {run_dir} cannot be written ({error.strerror}). Change its "
            "permissions or free space, or choose another one with --run-dir."
        ) from error
