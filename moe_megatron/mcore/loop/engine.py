"""Runs a configuration in this process (one of many), through Megatron's own `pretrain`.

The order of a run: check everything that can be checked, parse Megatron's arguments, build its
configuration container with our layer spec, install callbacks, call `pretrain`, and clean up global
state, so that the next run in this process works. It does not know the command line and prepares
no data.
"""

import contextlib
import logging
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from megatron.core.datasets import utils as dataset_utils
from megatron.core.enums import ModelType
from megatron.core.transformer.moe.moe_logging import set_moe_metrics_tracker
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from megatron.training import pretrain
from megatron.training.argument_utils import gpt_config_from_args, pretrain_cfg_container_from_args

from moe_megatron.config.checkpoint_files import iteration_dir
from moe_megatron.data.instructions.stored import holds_instructions, holds_pairs
from moe_megatron.data.instructions.suitable import check_pairs, check_settings
from moe_megatron.errors import BackendUnavailableError
from moe_megatron.mcore import world
from moe_megatron.mcore.evaluation.evaluator import TaskEvaluator
from moe_megatron.mcore.later import tokenizers_later
from moe_megatron.mcore.layers.prediction import our_prediction_layers
from moe_megatron.mcore.layers.specs import use_our_layers
from moe_megatron.mcore.layers.token_ids import (
    check_token_ids,
    samples_tokens,
    tasks_counted,
    uses_token_ids,
)
from moe_megatron.mcore.loop.arguments import RunPaths, megatron_argv, parse
from moe_megatron.mcore.loop.callbacks import Callback
from moe_megatron.mcore.loop.calling_back import callbacks_installed
from moe_megatron.mcore.loop.cleanup import ModelRelease, forget_run
from moe_megatron.mcore.loop.datasets import prefixes_in, train_valid_test_datasets
from moe_megatron.mcore.loop.forward import forward_step
from moe_megatron.mcore.loop.garbage import LastingObjects
from moe_megatron.mcore.loop.job import JobOutcome, MachineSettings, TrainingJob
from moe_megatron.mcore.loop.library_warnings import library_warnings_to
from moe_megatron.mcore.loop.micro_batches import micro_batch_seeds
from moe_megatron.mcore.loop.on_request import OnRequest
from moe_megatron.mcore.loop.packed_batch import set_packing
from moe_megatron.mcore.loop.reference_pass import PreferenceObjective, ReferencePass
from moe_megatron.mcore.loop.root_logger import forget_import, root_logger_kept
from moe_megatron.mcore.loop.router_states import RouterStates
from moe_megatron.mcore.loop.saving import Saves
from moe_megatron.mcore.loop.stages import EVERY_STAGE_READS, check_embeddings, embedding_ranks
from moe_megatron.mcore.loop.stopping import Stopping
from moe_megatron.mcore.loop.task_dataset import TASKS_OF_DATA
from moe_megatron.mcore.measure.attempt_journal import AttemptJournal
from moe_megatron.mcore.measure.lasting_writers import lasting_writers
from moe_megatron.mcore.measure.phases import PhaseClock
from moe_megatron.mcore.measure.router_loss_log import RouterLossLog
from moe_megatron.mcore.measure.telemetry import TelemetryCallback
from moe_megatron.mcore.recovery.build import (
    configured_policies,
    configured_watchdogs,
    guarded,
    number_masked,
)
from moe_megatron.mcore.recovery.rollback import RollBack
from moe_megatron.mcore.recovery.sections import Sections, monitor_flags, sections_told
from moe_megatron.mcore.state import checkpoint
from moe_megatron.mcore.state.background import saving_in_a_fork
from moe_megatron.mcore.state.complete_loading import complete_loading
from moe_megatron.mcore.state.guarded_reading import guarded_reading
from moe_megatron.mcore.state.initial import InitialWeights
from moe_megatron.mcore.state.optimizer_resharding import resharding_optimizer_states
from moe_megatron.mcore.state.optimizer_settings import configured_settings
from moe_megatron.mcore.state.optimizer_shards import saving_own_shards
from moe_megatron.mcore.state.other_router import other_router
from moe_megatron.mcore.state.partial_states import apart, lacking_states, states_apart
from moe_megatron.mcore.state.writing_in_place import writing_in_place
from moe_megatron.mcore.tuning.adapters.attach import attach
from moe_megatron.mcore.tuning.adapters.beginning import adapters_on_base, begin
from moe_megatron.mcore.tuning.adapters.compressed import CompressedExperts
from moe_megatron.mcore.tuning.empty_optimizers import without_empty_optimizers
from moe_megatron.mcore.tuning.freezing import freeze
from moe_megatron.mcore.tuning.preference_loss import ACCURACY, MARGIN
from moe_megatron.mcore.tuning.rates import rates_of_roles
from moe_megatron.telemetry.sinks.health import SinkHealth
from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE
from moe_megatron.telemetry.sinks.log_file import LogFile
from moe_megatron.telemetry.values.profile import PROFILE_FILE

logger = logging.getLogger(__name__)

forget_import()
tokenizers_later()


def run(job: TrainingJob, machine: MachineSettings) -> JobOutcome:
    """Train as the job says; every rank of the world must call it.

    Raises:
        MoEError: The configuration, data, checkpoint or machine does not allow it.
    """
    config = job.config
    kind = _check(job)
    load = _find_checkpoint(job)
    paths = RunPaths(
        data=job.data_paths,
        validation=job.validation_paths,
        data_cache=str(job.data_cache),
        vocab_size=job.vocab_size,
        end_of_document=job.end_of_document,
        checkpoints=None if job.checkpoints is None else str(job.checkpoints),
        load=None if load is None else str(load.parent),
        load_step=None if load is None else checkpoint.step_to_ask_for(load),
        instructions=kind != "text",
    )
    policies = configured_policies(
        config, checkpoints=job.checkpoints, loaded=load, run_dir=job.run_dir
    )
    telemetry = TelemetryCallback(
        config,
        job.sinks,
        job.run_dir,
        None if load is None else load / PROFILE_FILE,
        saves_checkpoints=job.checkpoints is not None,
        number_masked=number_masked(policies),
        health=job.health,
        measures=(MARGIN, ACCURACY) if kind == "pairs" else (),
    )
    objective = PreferenceObjective(config.preferences) if kind == "pairs" else None
    clock, release, lasting = PhaseClock(), ModelRelease(), LastingObjects()
    rollback = RollBack(
        job.checkpoints, None if load is None else job.run_dir, job.choose_checkpoint
    )
    watchdogs = configured_watchdogs(config.recovery, job.run_dir, clock.current)
    compressed = CompressedExperts(config.adapter, job.say)
    callbacks: list[Callback] = [
        release,
        lasting,
        RouterStates(),
        *_before_counting(job, objective, load),
        telemetry,
        *job.callbacks,
        *policies,
        *watchdogs,
        Sections(),
        compressed,
    ]
    if job.checkpoints is not None:
        checkpoint.check_writable(job.checkpoints)
        callbacks.append(_SideFiles(job, telemetry, load))
    journal = AttemptJournal(job.run_dir)
    journal.begin(loads=load is not None)
    callbacks.append(journal)  # last: it notes what is complete
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        stack.enter_context(root_logger_kept())
        stack.callback(forget_run, world.process_groups())
        stack.callback(_set_determinism, torch.are_deterministic_algorithms_enabled())
        for watchdog in watchdogs:
            stack.callback(watchdog.close)
        stack.callback(release.release)
        stack.callback(lasting.release)
        stack.enter_context(_output_to(job.megatron_log, job.health))
        stack.enter_context(lasting_writers(job.health))  # before `parse`, which opens them
        argv = [*megatron_argv(config, machine, paths), *monitor_flags(config)]
        stack.enter_context(sections_told(argv))
        args = parse(argv, verbose=True)
        check_embeddings(args)
        _note_data(args, job, instructions=kind != "text")
        args.iterations_to_skip.extend(rollback.left_out())
        stopping = Stopping(args.exit_signal)
        stack.enter_context(stopping.installed())
        stack.enter_context(guarded(config.recovery, callbacks, rollback, stopping, job.run_dir))
        stack.enter_context(callbacks_installed(callbacks, clock, _evaluator(job)))
        saves = Saves(callbacks, clock, job.checkpoints, config.checkpoint.patience_seconds)
        stack.enter_context(saves.watched())
        stack.enter_context(OnRequest(job.run_dir).installed())
        set_moe_metrics_tracker(RouterLossLog(args.moe_router_load_balancing_type))
        if "use-checkpoint-opt_param-scheduler" not in config.megatron:
            stack.enter_context(configured_settings(checkpoint.batch_growth(load, config)))
        stack.enter_context(_our_checkpoints(args, job, load, compressed))
        stack.enter_context(checkpoint.explained_errors(job.checkpoints or load or Path.cwd()))
        interrupted = _pretrain(args, job, clock, objective, draws=load is None)
        journal.end(interrupted=interrupted)
        telemetry.flush()
    return JobOutcome(
        steps=telemetry.last_step,
        interrupted=interrupted,
        seconds=time.perf_counter() - started,
        profile=telemetry.profile,
        recent=telemetry.recent if telemetry.profile is not None else None,
    )


def _check(job: TrainingJob) -> Literal["text", "samples", "pairs"]:
    """Refuse what cannot train together; returns what the data is."""
    job.config.validate(world.size())
    check_token_ids(job.config, job.data_paths)
    prefixes = _prefixes(job)
    if not holds_instructions(prefixes):
        return "text"
    check_settings(job.config)
    if not holds_pairs(prefixes):
        return "samples"
    check_pairs(job.config)
    return "pairs"


def _prefixes(job: TrainingJob) -> list[Path]:
    return prefixes_in((*job.data_paths, *job.validation_paths))


def _before_counting(
    job: TrainingJob, objective: PreferenceObjective | None, load: Path | None
) -> list[Callback]:
    """What runs the model before the first step, and must not be counted by telemetry."""
    if objective is None:
        return []
    return [
        ReferencePass(
            _prefixes(job),
            objective,
            job.vocab_size,
            load=load,
            checkpoints=job.checkpoints,
            say=job.say,
        )
    ]


def _evaluator(job: TrainingJob) -> TaskEvaluator | None:
    if not job.held_out or not job.config.evaluates_tasks:
        return None
    metrics = None if job.run_dir is None else job.run_dir / METRICS_FILE
    return TaskEvaluator(job.config, job.held_out, job.say, metrics)


def _note_data(args: Any, job: TrainingJob, *, instructions: bool) -> None:
    """Put into Megatron's arguments what datasets and stages must know about the data."""
    config = job.config
    for_layers = uses_token_ids(config) or bool(tasks_counted(config)) or samples_tokens(config)
    setattr(args, EVERY_STAGE_READS, instructions or for_layers)
    setattr(args, TASKS_OF_DATA, job.tasks)
    set_packing(args, packed=instructions)


def _set_determinism(wanted: bool) -> None:
    """Restore torch's switch, only if it has changed: setting it imports torch's compiler."""
    if torch.are_deterministic_algorithms_enabled() != wanted:
        torch.use_deterministic_algorithms(wanted)


@contextlib.contextmanager
def _our_checkpoints(
    args: Any, job: TrainingJob, load: Path | None, compressed: CompressedExperts
) -> Iterator[None]:
    """Let Megatron save and load as we want it to."""
    finetune = job.config.finetune
    rerouted = None if load is None else other_router(load, job.config)
    if rerouted is not None and world.rank() == 0:
        job.say(str(rerouted))
    with contextlib.ExitStack() as stack:
        stack.enter_context(resharding_optimizer_states())
        if job.config.states_apart:
            stack.enter_context(saving_own_shards(apart))
            stack.enter_context(states_apart())
            stack.enter_context(lacking_states() if finetune.reselect else nullcontext())
        else:
            stack.enter_context(saving_own_shards())
        stack.enter_context(writing_in_place())
        stack.enter_context(complete_loading())
        stack.enter_context(checkpoint.explained_loading(load))
        stack.enter_context(guarded_reading())
        stack.enter_context(rerouted.loading() if rerouted else nullcontext())
        stack.enter_context(adapters_on_base() if job.config.adapter.on else nullcontext())
        if args.async_save and args.distributed_backend == "gloo":
            stack.enter_context(saving_in_a_fork(args))
        stack.enter_context(compressed.whole_in_checkpoints())
        if not args.async_save:
            stack.enter_context(checkpoint.saving_without_helper_process())
        yield


def _pretrain(
    args: Any,
    job: TrainingJob,
    clock: PhaseClock,
    objective: PreferenceObjective | None,
    *,
    draws: bool,
) -> bool:
    """Train with Megatron; returns whether a signal ended the run early.

    Args:
        args: Megatron's arguments.
        job: The run.
        clock: Tells how long what takes.
        objective: The loss of pairs; None: that of tokens.
        draws: Whether the model starts from random weights, not from a checkpoint's.
    """
    model_config = gpt_config_from_args(args)
    if args.spec is None:
        use_our_layers(model_config, job.config)
    elif model_config.transformer_layer_spec is None:
        # Megatron logs a failed import of --spec and then silently trains the stock layers.
        raise BackendUnavailableError(
            f"--spec {' '.join(args.spec)} could not be imported; check module and function name."
        )
    if draws:
        weights = InitialWeights(args.seed)
        weights.watch(model_config.transformer)
        model_config.pre_wrap_hooks.append(weights.draw)
    adapter = job.config.adapter
    if adapter.on:
        model_config.pre_wrap_hooks.append(partial(attach, config=adapter, seed=args.seed))
    if job.config.freezes:
        frozen = partial(freeze, finetune=job.config.finetune, say=job.say, adapted=adapter.on)
        model_config.pre_wrap_hooks.append(frozen)
    model_config.pre_wrap_hooks.extend(job.model_hooks)
    if adapter.on:
        model_config.pre_wrap_hooks.append(partial(begin, say=job.say))
    _skip_missing_makefile()
    # Megatron copies the scale of a run into that of the one before, whatever its shape.
    MoEAuxLossAutoScaler.main_loss_backward_scale = None
    try:
        rates = rates_of_roles(job.config.finetune, job.config.training.learning_rate)
        with our_prediction_layers(job.config), rates, without_empty_optimizers():
            pretrain(
                pretrain_cfg_container_from_args(args, model_config),
                train_valid_test_datasets,
                ModelType.encoder_or_decoder,
                partial(
                    forward_step,
                    clock=clock,
                    seeds=micro_batch_seeds(job.config),
                    objective=objective,
                ),
                get_embedding_ranks=embedding_ranks,
                store=world.single_process_store(),
            )
    except SystemExit as exit_request:
        if exit_request.code not in (None, 0):
            raise
        return True
    return False


class _SideFiles(Callback):
    """Writes configuration, tokenizer, routing profile and origin beside each checkpoint."""

    def __init__(self, job: TrainingJob, telemetry: TelemetryCallback, load: Path | None) -> None:
        self._job = job
        self._telemetry = telemetry
        self._load = load

    def on_checkpoint_end(self, step: int) -> None:
        """Write the files, on rank 0."""
        if self._job.checkpoints is None or dist.get_rank() != 0:
            return
        folder = iteration_dir(self._job.checkpoints, step)
        checkpoint.write_side_files(
            folder, self._job.config, loaded=self._load, tokenizer=self._job.tokenizer
        )
        if self._telemetry.profile is not None:
            self._telemetry.profile.save(folder / PROFILE_FILE)


def _find_checkpoint(job: TrainingJob) -> Path | None:
    if job.load is not None:
        return checkpoint.check_same_model(job.load, job.config)
    if job.config.checkpoint.load is None:
        return None
    return checkpoint.check_loadable(Path(job.config.checkpoint.load), job.config)


def _skip_missing_makefile() -> None:
    """Keep Megatron from building its dataset helpers with `make`, as it does at every start.

    The wheel ships them compiled and without the Makefile, so Megatron would exit.
    """
    if not (Path(dataset_utils.__file__).parent / "Makefile").exists():
        dataset_utils.compile_helpers = lambda: None


@contextlib.contextmanager
def _output_to(path: Path | None, health: SinkHealth) -> Iterator[None]:
    """Send what Megatron prints, logs and warns of on this rank to a file."""
    if path is None:
        yield
        return
    megatron_logger = logging.getLogger("megatron")
    with LogFile(path, "megatron_log", health) as file:
        handler = logging.StreamHandler(file)
        megatron_logger.addHandler(handler)
        propagate, megatron_logger.propagate = megatron_logger.propagate, False
        try:
            with contextlib.redirect_stdout(file), library_warnings_to(file):
                yield
        finally:
            megatron_logger.removeHandler(handler)
            megatron_logger.propagate = propagate
