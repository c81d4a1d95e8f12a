"""A run as a backend gets it, and what comes of it: data, which can be read without Megatron."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe_megatron.config import RunConfig
from moe_megatron.config.checkpoint_files import folder_of_checkpoints
from moe_megatron.data.held_out import HeldOut
from moe_megatron.mcore.loop.callbacks import Callback
from moe_megatron.telemetry.sinks.health import SinkHealth
from moe_megatron.telemetry.sinks.sink_set import SinkSet
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.telemetry.values.recent_use import RecentUse

ModelHook = Callable[[list[Any]], list[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineSettings:
    """Settings of a run that depend on the machine, not on its configuration."""

    backend: str
    """"gloo" or "nccl"."""
    transformer_impl: str
    """"local" or "transformer_engine"."""
    precision: str
    """"fp32", "bf16" or "fp8"; never "auto"."""
    grouped_gemm: bool
    accumulation_fusion: bool
    """Whether the fused weight gradient kernel is installed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingJob:
    """One run, ready to start."""

    config: RunConfig
    data_paths: tuple[str, ...]
    """Weights and prefixes of indexed datasets, as for `--data-path`; empty for mock data."""
    data_cache: Path
    vocab_size: int
    end_of_document: int
    validation_paths: tuple[str, ...] = ()
    """As `data_paths`, for separate validation data; empty to split `data_paths`."""
    tokenizer: Path | None = None
    """Folder of the tokenizer, which is copied beside each checkpoint."""
    tasks: tuple[int, ...] = ()
    """The number of the task of each prefix of `data_paths`; empty where the data has no tasks."""
    held_out: tuple[HeldOut, ...] = ()
    """What is evaluated by itself, in place of the blend; empty: the blend is."""
    load: Path | None = None
    """Folder of the checkpoint to start from; None: the newest in `config.checkpoint.load`."""
    run_dir: Path | None = None
    """Folder of the run; None writes nothing."""
    sinks: SinkSet | None = None
    """Sinks for the records of rank 0; None on other ranks."""
    callbacks: tuple[Callback, ...] = ()
    model_hooks: tuple[ModelHook, ...] = ()
    """Called with the model chunks before they are wrapped; each returns the chunks."""
    megatron_log: Path | None = None
    """File for Megatron's own output on this rank; None leaves it on the terminal."""
    choose_checkpoint: Callable[[], Path | None] | None = None
    """Gives the run's own checkpoint to go back to, on every rank; None: the newest one."""
    say: Callable[[str], None] = lambda line: None
    """Called on rank 0 with lines on what the engine has chosen."""
    health: SinkHealth = field(default_factory=SinkHealth)
    """Is told when that file, TensorBoard or W&B cannot be written."""

    @property
    def checkpoints(self) -> Path | None:
        """Folder of the `iter_*` folders; None when the run saves none."""
        elsewhere = "save" in self.config.megatron
        if not elsewhere and (self.run_dir is None or self.config.checkpoint.save_interval is None):
            return None
        return folder_of_checkpoints(self.config.megatron, self.run_dir or Path())


@dataclass(frozen=True, kw_only=True, slots=True)
class JobOutcome:
    """How a run ended, on this rank."""

    steps: int
    """Steps the model has made, including those before a resume."""
    interrupted: bool
    """Whether a signal stopped the run, after saving."""
    seconds: float
    profile: RoutingProfile | None
    """Routing of the whole run; only on rank 0 of MoE runs."""
    recent: RecentUse | None = None
    """When experts last had a token; None where `profile` is."""
