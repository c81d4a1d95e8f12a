"""Runs a configuration in this process (one of `world_size`), through Megatron's own `pretrain`.

The order of a run: choose what the machine decides, check everything that can be checked, parse
Megatron's arguments, build its configuration container with our layer spec, install callbacks, call
`pretrain`, and leave no global state behind, so that the next run in this process works. It does
not know the command line, and prepares no data.
"""

import contextlib
import importlib.util
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.datasets import utils as dataset_utils
from megatron.core.enums import ModelType
from megatron.core.transformer.moe.moe_logging import destroy_moe_metrics_tracker
from megatron.training import global_vars, pretrain
from megatron.training import training as loop
from megatron.training.argument_utils import gpt_config_from_args, pretrain_cfg_container_from_args

from moe_megatron.config import RunConfig
from moe_megatron.errors import BackendUnavailableError
from moe_megatron.mcore import checkpoint
from moe_megatron.mcore.arguments import (
    MachineSettings,
    RunPaths,
    megatron_argv,
    parse,
    prepare_environment,
)
from moe_megatron.mcore.callbacks import Callback, callbacks_installed
from moe_megatron.mcore.datasets import train_valid_test_datasets
from moe_megatron.mcore.forward import forward_step
from moe_megatron.mcore.optimizer_resharding import resharding_optimizer_states
from moe_megatron.mcore.phases import PhaseClock
from moe_megatron.mcore.specs import use_our_layers
from moe_megatron.mcore.telemetry import TelemetryCallback
from moe_megatron.platform.choice import Choice
from moe_megatron.platform.device import (
    Device,
    choose_backend,
    choose_precision,
    choose_transformer_impl,
    detect_device,
)
from moe_megatron.telemetry.sinks.sink_set import SinkSet
from moe_megatron.telemetry.values.profile import PROFILE_FILE, RoutingProfile

logger = logging.getLogger(__name__)

ModelHook = Callable[[list[Any]], list[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingJob:
    """One run, ready to start."""

    config: RunConfig
    data_paths: tuple[str, ...]
    """Weights and prefixes of indexed datasets, as `--data-path` takes them; empty: mock data."""
    data_cache: Path
    vocab_size: int
    end_of_document: int
    validation_paths: tuple[str, ...] = ()
    """As `data_paths`, where validation has data of its own instead of a split."""
    tokenizer: Path | None = None
    """Folder of the tokenizer, which travels with the checkpoints."""
    run_dir: Path | None = None
    """None writes nothing."""
    sinks: SinkSet | None = None
    """Where rank 0 reports; None on other ranks."""
    callbacks: tuple[Callback, ...] = ()
    model_hooks: tuple[ModelHook, ...] = ()
    """Called with the model chunks before they are wrapped; each returns the chunks."""
    megatron_log: Path | None = None
    """Where Megatron's own output of this rank goes; None leaves it on the terminal."""

    @property
    def checkpoints(self) -> Path | None:
        """Folder of the `iter_*` folders; None when the run saves none."""
        if "save" in self.config.megatron:
            return Path(str(self.config.megatron["save"]))
        if self.run_dir is None or self.config.checkpoint.save_interval is None:
            return None
        return self.run_dir / "checkpoints"


@dataclass(frozen=True, kw_only=True, slots=True)
class JobOutcome:
    """How a run ended, on this rank."""

    steps: int
    """Steps the model has made, those before a resume included."""
    interrupted: bool
    """Stopped by a signal, after saving."""
    seconds: float
    profile: RoutingProfile | None
    """Routing of the whole run; on rank 0 of MoE runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineChoices:
    """What the machine decided, each with its reason."""

    device: Choice[Device]
    backend: Choice[Any]
    transformer_impl: Choice[Any]
    precision: Choice[str]
    settings: MachineSettings = field(repr=False)

    def lines(self) -> list[str]:
        """One line a choice, for people."""
        named = {
            "device": self.device,
            "communication": self.backend,
            "layers": self.transformer_impl,
            "precision": self.precision,
        }
        return [f"{name}: {choice.value} ({choice.reason})" for name, choice in named.items()]


def choose_machine(config: RunConfig) -> MachineChoices:
    """Decide device, communication, layer implementation and precision.

    Raises:
        BackendUnavailableError: The configuration asks for what this machine lacks.
    """
    prepare_environment(config)
    device = detect_device()
    implementation = choose_transformer_impl(device.value)
    precision: Choice[str] = Choice(value=config.training.precision, reason="it was requested")
    if config.training.precision == "auto":
        chosen = choose_precision(device.value)
        precision = Choice(value=chosen.value, reason=chosen.reason)
    with_engine = implementation.value == "transformer_engine"
    if precision.value == "fp8" and not with_engine:
        raise BackendUnavailableError(
            f"precision fp8 needs Transformer Engine, and {implementation.reason}; use bf16, or a "
            "GPU machine with transformer-engine[pytorch]."
        )
    if config.parallel.context_parallel_size > 1 and not with_engine:
        raise BackendUnavailableError(
            "context parallelism needs Transformer Engine's attention, and "
            f"{implementation.reason}; set parallel.context_parallel_size to 1, or use a GPU "
            "machine with transformer-engine[pytorch]."
        )
    grouped = config.moe.grouped_gemm
    settings = MachineSettings(
        backend=choose_backend(device.value).value,
        transformer_impl=implementation.value,
        precision=precision.value,
        grouped_gemm=with_engine if grouped is None else grouped,
        accumulation_fusion=importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is not None,
    )
    return MachineChoices(
        device=device,
        backend=choose_backend(device.value),
        transformer_impl=implementation,
        precision=precision,
        settings=settings,
    )


def run(job: TrainingJob, machine: MachineChoices) -> JobOutcome:
    """Train as the job says; on every rank of the world.

    Raises:
        MoEError: Configuration, data, checkpoint or machine do not allow it.
    """
    config = job.config
    config.validate(world_size())
    load = _find_checkpoint(job)
    paths = RunPaths(
        data=job.data_paths,
        validation=job.validation_paths,
        data_cache=str(job.data_cache),
        vocab_size=job.vocab_size,
        end_of_document=job.end_of_document,
        checkpoints=None if job.checkpoints is None else str(job.checkpoints),
        load=None if load is None else str(load.parent),
    )
    telemetry = TelemetryCallback(
        config,
        job.sinks,
        job.run_dir,
        None if load is None else load / PROFILE_FILE,
        saves_checkpoints=job.checkpoints is not None,
    )
    clock = PhaseClock()
    release = _ModelRelease()
    callbacks: list[Callback] = [release, telemetry, *job.callbacks]
    if job.checkpoints is not None:
        checkpoint.check_writable(job.checkpoints)
        callbacks.append(_CompanionFiles(job, telemetry, load))
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        stack.callback(forget_run, process_groups())
        stack.callback(release.release)
        stack.enter_context(_output_to(job.megatron_log))
        args = parse(megatron_argv(config, machine.settings, paths), verbose=True)
        stack.enter_context(_stop_on_interrupt())
        stack.enter_context(callbacks_installed(callbacks, clock))
        stack.enter_context(resharding_optimizer_states())
        stack.enter_context(checkpoint.explained_loading(load))
        if not args.async_save:
            stack.enter_context(checkpoint.saving_without_helper_process())
        stack.enter_context(checkpoint.explained_errors(job.checkpoints or load or Path.cwd()))
        interrupted = _pretrain(args, job, clock)
        telemetry.flush()
    return JobOutcome(
        steps=telemetry.last_step,
        interrupted=interrupted,
        seconds=time.perf_counter() - started,
        profile=telemetry.profile,
    )


def _pretrain(args: Any, job: TrainingJob, clock: PhaseClock) -> bool:
    """Hand over to Megatron; returns whether a signal ended the run early."""
    model_config = gpt_config_from_args(args)
    if args.spec is None:
        use_our_layers(model_config, job.config)
    elif model_config.transformer_layer_spec is None:
        # Megatron logs a failed import of --spec and then silently trains the stock layers.
        raise BackendUnavailableError(
            f"--spec {' '.join(args.spec)} could not be imported; check module and function name."
        )
    model_config.pre_wrap_hooks.extend(job.model_hooks)
    _skip_missing_makefile()
    try:
        pretrain(
            pretrain_cfg_container_from_args(args, model_config),
            train_valid_test_datasets,
            ModelType.encoder_or_decoder,
            partial(forward_step, clock=clock),
            store=_lonely_store(),
        )
    except SystemExit as exit_request:
        if exit_request.code not in (None, 0):
            raise
        return True
    return False


class _CompanionFiles(Callback):
    """Writes what belongs beside each checkpoint: configuration, routing profile, origin."""

    def __init__(self, job: TrainingJob, telemetry: TelemetryCallback, load: Path | None) -> None:
        self._job = job
        self._telemetry = telemetry
        self._load = load

    def on_checkpoint_end(self, step: int) -> None:
        """Write all on rank 0."""
        if self._job.checkpoints is None or dist.get_rank() != 0:
            return
        folder = checkpoint.iteration_dir(self._job.checkpoints, step)
        checkpoint.write_companions(
            folder, self._job.config, loaded=self._load, tokenizer=self._job.tokenizer
        )
        if self._telemetry.profile is not None:
            self._telemetry.profile.save(folder / PROFILE_FILE)


class _ModelRelease(Callback):
    """Lets the memory of a finished run's model go.

    Megatron's data parallel wrapper hooks into autograd, and token dispatchers and the optimizer
    (which the configuration holds) keep autograd graphs: circles through C++, where Python's
    garbage collector does not see.
    """

    def __init__(self) -> None:
        self._model: list[Any] = []

    def on_train_start(self, model: list[Any], start_step: int) -> None:
        """Remember the model."""
        self._model = model

    def release(self) -> None:
        """Take the hooks apart."""
        for chunk in self._model:
            getattr(chunk, "grad_accs", []).clear()
            for module in chunk.modules():
                vars(getattr(module, "token_dispatcher", module)).pop("probs", None)
            for parameter in chunk.parameters():
                vars(parameter).pop("main_param", None)
            chunk.config.grad_scale_func = None
        self._model = []


def _find_checkpoint(job: TrainingJob) -> Path | None:
    if job.config.checkpoint.load is None:
        return None
    return checkpoint.check_loadable(Path(job.config.checkpoint.load), job.config)


def world_size() -> int:
    """Number of processes of the world."""
    if dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1"))


def _lonely_store() -> Any:
    """A store for a process that no launcher started; launched ones find theirs by environment."""
    if dist.is_initialized() or "MASTER_ADDR" in os.environ:
        return None
    return dist.HashStore()  # type: ignore[attr-defined]


def _skip_missing_makefile() -> None:
    """Megatron builds its dataset helpers with `make` at every start.

    The wheel ships them compiled and without the Makefile, and Megatron would exit.
    """
    if not (Path(dataset_utils.__file__).parent / "Makefile").exists():
        dataset_utils.compile_helpers = lambda: None


@contextlib.contextmanager
def _output_to(path: Path | None) -> Iterator[None]:
    """Send what Megatron prints and logs on this rank to a file."""
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    megatron_logger = logging.getLogger("megatron")
    with path.open("a", encoding="utf-8", buffering=1) as file:
        handler = logging.StreamHandler(file)
        megatron_logger.addHandler(handler)
        propagate, megatron_logger.propagate = megatron_logger.propagate, False
        try:
            with contextlib.redirect_stdout(file):
                yield
        finally:
            megatron_logger.removeHandler(handler)
            megatron_logger.propagate = propagate


@contextlib.contextmanager
def _stop_on_interrupt() -> Iterator[None]:
    """Let the first Ctrl-C end the run after the current step and save, as SIGTERM does."""

    def stop(signum: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.kill(os.getpid(), signal.SIGTERM)

    try:
        previous = signal.signal(signal.SIGINT, stop)
    except ValueError:  # not the main thread: the interrupt belongs to somebody else
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def process_groups() -> list[dist.ProcessGroup]:
    """The groups of this process, oldest first."""
    return list(dist.distributed_c10d._world.pg_map)


def forget_run(groups_before: Sequence[dist.ProcessGroup]) -> None:
    """Undo what a run leaves in Megatron's globals; the world's group stays for the next run.

    Megatron forgets its groups without closing them, and every Gloo group keeps threads.
    """
    handler = global_vars._GLOBAL_SIGNAL_HANDLER
    if handler is not None:
        handler.release()
    loop.destroy_global_state()
    destroy_moe_metrics_tracker()
    kept = {*groups_before, dist.group.WORLD}
    for group in process_groups():
        if group not in kept:
            dist.destroy_process_group(group)


def join_world(machine: MachineChoices) -> None:
    """Meet the other processes before a run does, so that they can agree on something."""
    if dist.is_initialized():
        return
    if machine.settings.backend == "nccl":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    store = _lonely_store()
    if store is None:
        dist.init_process_group(machine.settings.backend)
    else:
        dist.init_process_group(machine.settings.backend, store=store, rank=0, world_size=1)


def agree_on_text(text: str) -> str:
    """The text that rank 0 gives, on every rank; after `join_world`."""
    device = device_of_run()
    size = torch.tensor([len(text.encode())], device=device)
    dist.broadcast(size, src=0)
    letters = torch.zeros(int(size), dtype=torch.uint8, device=device)
    if dist.get_rank() == 0:
        letters.copy_(torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8))
    dist.broadcast(letters, src=0)
    return bytes(letters.cpu().tolist()).decode()


def shut_down() -> None:
    """Leave the world: close the process group. Call it once, at the end of the process."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process, 0 when it is alone."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))


def device_of_run() -> torch.device:
    """The device that models of this process live on."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


__all__: Sequence[str] = (
    "JobOutcome",
    "MachineChoices",
    "TrainingJob",
    "agree_on_text",
    "choose_machine",
    "device_of_run",
    "forget_run",
    "join_world",
    "process_groups",
    "rank",
    "run",
    "shut_down",
    "world_size",
)
