"""One run on this rank, from a configuration to its result.

Every way to train goes through `start`: the command line, `torchrun pretrain_moe.py`, `MoETrainer`,
and programs that fine-tune or recover. It parses no arguments, and prints only through sinks and
`say`.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path

from moe_megatron.config import CONFIG_FILE, RunConfig, apply_overrides, load_config
from moe_megatron.config.checkpoint_files import iteration_dir
from moe_megatron.errors import AGAIN, INTERRUPTED, ConfigError
from moe_megatron.experts import resolve
from moe_megatron.mcore import world
from moe_megatron.mcore.loop.callbacks import Callback
from moe_megatron.mcore.loop.job import JobOutcome, MachineSettings, ModelHook, TrainingJob
from moe_megatron.platform.collection import without_collection
from moe_megatron.platform.parent import end_with_launcher
from moe_megatron.run.folder import continued, make_run_dir
from moe_megatron.run.history import History
from moe_megatron.run.keeper import Keeper
from moe_megatron.run.machine import MachineChoices, choose_machine
from moe_megatron.run.missing_data import data_of_run
from moe_megatron.run.prepared_data import PreparedData
from moe_megatron.run.rank_folder import ConfigWriter, FolderWatch, claimed_folder, noted_end
from moe_megatron.run.resume import choose_checkpoint, newest_valid
from moe_megatron.run.sinks import configured_sinks
from moe_megatron.telemetry.exporter.prometheus_sink import PrometheusSink
from moe_megatron.telemetry.sinks.delivery import Sink
from moe_megatron.telemetry.sinks.health import SinkHealth
from moe_megatron.telemetry.sinks.sink_set import SinkSet

logger = logging.getLogger(__name__)

_TIMEOUT_MINUTES = 10
"""Megatron's default for how long ranks wait for each other."""

Backend = Callable[[TrainingJob, MachineSettings], JobOutcome]
"""The function that trains; it must call the job's sinks and callbacks as Megatron's loop does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attachments:
    """Extensions of a run from outside, with which fine-tuning can be built, for example."""

    sinks: Sequence[Sink] = ()
    """Sinks in addition to the configured ones, on rank 0."""
    callbacks: Sequence[Callback] = ()
    """Callbacks from the training loop, on every rank."""
    health: SinkHealth = field(default_factory=SinkHealth)
    """Is told which sinks fail, by those of the run and by others of this process."""
    model_hooks: Sequence[ModelHook] = ()
    """Functions that change the model before training: freeze, add or load parameters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """The result of a run, as far as this rank knows it."""

    config: RunConfig
    """The configuration that was trained, with all automatic choices resolved."""
    run_dir: Path
    outcome: JobOutcome
    history: History
    """Records of the run; empty on ranks other than 0."""
    checkpoint: Path | None
    """Folder of the last step's checkpoint; None if there is none."""

    @property
    def was_stopped(self) -> bool:
        """Whether a signal or a limit of time ended the run before its last step."""
        by_samples = "train-samples" in self.config.megatron
        left = by_samples or self.outcome.steps < self.config.training.train_steps
        return self.outcome.interrupted and left

    @property
    def exit_code(self) -> int:
        """With which code the processes of the run leave."""
        if not self.was_stopped:
            return 0
        return AGAIN if self.checkpoint is not None else INTERRUPTED


def megatron(job: TrainingJob, machine: MachineSettings) -> JobOutcome:
    """The usual backend: Megatron's own loop, which is imported with the first run that needs it.

    Raises:
        MoEError: The configuration, data, checkpoint or machine does not allow it.
    """
    with without_collection():
        from moe_megatron.mcore.loop import engine

    return engine.run(job, machine)


def start(
    config: RunConfig,
    *,
    data: PreparedData | None = None,
    fresh: bool = False,
    attached: Attachments | None = None,
    backend: Backend = megatron,
    quiet_megatron: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> RunResult:
    """Run on this rank until training ends or a signal stops it.

    Args:
        config: The run.
        data: The data to train on; None prepares the data that the configuration names.
        fresh: If the run folder already holds a run, use the next free name instead.
        attached: Additional sinks, callbacks and model hooks.
        backend: The function that trains.
        quiet_megatron: Send Megatron's own output to a file in the run folder.
        say: Called on rank 0 with one line per automatic choice.

    Raises:
        MoEError: The run cannot start or continue; the message names the remedy.
    """
    end_with_launcher()
    attached = attached or Attachments()
    config = replace(config, moe=resolve(config.moe))
    config.validate(world.size())
    machine = choose_machine(config)
    with claimed_folder(
        Path(config.run_dir),
        fresh=fresh,
        backend=machine.settings.backend,
        timeout=patience(config),
    ) as folder:
        config = apply_overrides(config, {"run_dir": str(folder)})
        if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")):
            config = continued(config)  # torchrun has started the ranks again, as they were
        with noted_end(folder) as ended:
            result = _start(config, data, machine, attached, backend, quiet_megatron, say)
            ended(result.exit_code)
        return result


def patience(config: RunConfig) -> timedelta:
    """How long the ranks of a run wait for each other."""
    minutes = config.megatron.get("distributed-timeout-minutes", _TIMEOUT_MINUTES)
    return timedelta(minutes=float(str(minutes)))


def _start(
    config: RunConfig,
    data: PreparedData | None,
    machine: MachineChoices,
    attached: Attachments,
    backend: Backend,
    quiet_megatron: bool,
    say: Callable[[str], None],
) -> RunResult:
    config = apply_overrides(config, {"training.precision": machine.precision.value})
    rank, run_dir, history = world.rank(), Path(config.run_dir), History()
    for line in machine.lines() if rank == 0 else ():
        say(line)
    if data is None:
        data = data_of_run(config, progress=rank == 0)
    loaded = choose_checkpoint(config, machine.settings.backend, say)
    config = _with_vocabulary(config, data.vocab_size, loaded)
    make_run_dir(run_dir)
    health = attached.health
    health.run_dir = run_dir
    with _sinks_of(config, [history], attached.sinks, health) as sinks:
        job = TrainingJob(
            config=config,
            data_paths=data.paths,
            data_cache=data.cache,
            vocab_size=config.data.vocab_size,
            end_of_document=data.end_of_document,
            validation_paths=data.validation_paths,
            tokenizer=data.tokenizer,
            tasks=data.tasks,
            held_out=data.held_out,
            load=loaded,
            run_dir=run_dir,
            sinks=sinks,
            callbacks=(FolderWatch(run_dir), ConfigWriter(config), *attached.callbacks),
            model_hooks=tuple(attached.model_hooks),
            say=say,
            health=health,
            megatron_log=run_dir / "logs" / f"rank{rank}.log" if quiet_megatron else None,
        )
        outcome = backend(_looked_after(job, loaded, history), machine.settings)
    saved = job.checkpoints and iteration_dir(job.checkpoints, outcome.steps)
    return RunResult(
        config=config,
        run_dir=run_dir,
        outcome=outcome,
        history=history,
        checkpoint=saved if saved and saved.exists() else None,
    )


@contextmanager
def _sinks_of(
    config: RunConfig, first: Sequence[Sink], last: Sequence[Sink], health: SinkHealth
) -> Iterator[SinkSet | None]:
    """The sinks of a run, around those that are configured; None except on rank 0.

    They are closed at the end. If the run fails, the exporter's target file stays behind, so that
    Prometheus misses the run.
    """
    if world.rank() != 0:
        yield None
        return
    configured = configured_sinks(config, Path(config.run_dir), health)
    sinks = SinkSet([*first, *configured, *last], health=health)
    try:
        yield sinks
    except Exception:
        for sink in configured:
            if isinstance(sink, PrometheusSink):
                sink.run_failed = True
        raise
    finally:
        sinks.close()


def _looked_after(job: TrainingJob, loaded: Path | None, history: History) -> TrainingJob:
    """The job with checksums for its checkpoints, by which it chooses, and old ones removed."""
    if job.checkpoints is None or job.run_dir is None:
        return job
    keeper = Keeper(
        job.checkpoints,
        job.config.checkpoint,
        loaded=loaded,
        run_dir=job.run_dir,
        history=history,
        metric=job.config.evaluation.metric if job.config.evaluation.best else None,
    )

    def choose() -> Path | None:
        keeper.settle()
        world.wait_for_all()
        assert job.checkpoints is not None
        return newest_valid(job.checkpoints, job.config, partial(logger.warning, "%s"))

    return replace(job, callbacks=(*job.callbacks, keeper), choose_checkpoint=choose)


def _with_vocabulary(config: RunConfig, entries: int, folder: Path | None) -> RunConfig:
    """Set the size of the vocabulary: that of the checkpoint to load, else that of the tokenizer.

    A model may have more tokens than its tokenizer, as published models often do.
    """
    if folder and (folder / CONFIG_FILE).is_file():
        loaded = load_config(folder / CONFIG_FILE).data.vocab_size
        if entries > loaded:
            raise ConfigError(
                f"the tokenizer has {entries} tokens and the model in {folder} only {loaded}; set "
                "data.tokenizer to the tokenizer of that model."
            )
        entries = loaded
    return apply_overrides(config, {"data.vocab_size": entries})
