"""The whole configuration of a run: twelve sections, and Megatron flags that none of them covers.

It checks that the sections fit together. It does not read files (`loader`), nor translate fields
to Megatron flags (`flags`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from moe_megatron.config import checks, validation
from moe_megatron.config.adapter import AdapterConfig
from moe_megatron.config.architecture import Architecture
from moe_megatron.config.checkpoint import CheckpointConfig
from moe_megatron.config.conform import conform
from moe_megatron.config.data import DataConfig
from moe_megatron.config.evaluation import EvaluationConfig
from moe_megatron.config.finetune import FinetuneConfig
from moe_megatron.config.model import ModelConfig
from moe_megatron.config.moe import MoEConfig
from moe_megatron.config.parallel import ParallelConfig
from moe_megatron.config.preferences import PreferencesConfig
from moe_megatron.config.recovery import RecoveryConfig
from moe_megatron.config.telemetry import TelemetryConfig
from moe_megatron.config.training import TrainingConfig
from moe_megatron.errors import ConfigError

# Tried from left to right: text such as "1e-3" stays text, as Megatron parses it itself.
MegatronScalar = bool | int | str | float
MegatronValue = MegatronScalar | tuple[MegatronScalar, ...] | None

SECTIONS: dict[str, type] = {
    checks.section_of(section): section
    for section in (
        ModelConfig,
        MoEConfig,
        DataConfig,
        TrainingConfig,
        ParallelConfig,
        CheckpointConfig,
        TelemetryConfig,
        RecoveryConfig,
        FinetuneConfig,
        AdapterConfig,
        EvaluationConfig,
        PreferencesConfig,
    )
}
"""The sections by name, in the order in which a file lists them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Everything that decides what a run computes.

    Raises:
        ConfigError: If a value has the wrong type, or a Megatron flag is badly spelled.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    """The transformer around the experts."""

    moe: MoEConfig = field(default_factory=MoEConfig)
    """Experts, router and load balancing."""

    data: DataConfig = field(default_factory=DataConfig)
    """Text, tokenizer and sequence length."""

    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Steps, batches, optimizer and evaluation."""

    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """How the model is split over processes."""

    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Writing and loading of checkpoints."""

    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    """What the run reports."""

    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    """What happens after a fault."""

    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    """Which parameters are trained, and how fast."""

    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    """Low-rank adapters."""

    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """What a run is judged by, and when it has had enough."""

    preferences: PreferencesConfig = field(default_factory=PreferencesConfig)
    """The loss of pairs of answers."""

    run_dir: str = "runs/moe"
    """Folder of everything the run writes: metrics, checkpoints, report."""

    preset: str | None = None
    """Name of the preset that the run started from, noted by the loader; to use one, set `base`."""

    megatron: Mapping[str, MegatronValue] = field(default_factory=dict)
    """Further Megatron flags, without the leading dashes; true for a flag that takes no value,
    null to remove a flag of the base."""

    def __post_init__(self) -> None:
        conform(self)
        checks.not_empty(self, "run_dir", "preset")
        object.__setattr__(self, "megatron", _normalized_flags(self.megatron))

    @property
    def evaluates_tasks(self) -> bool:
        """Whether held-out data is evaluated by task, or the run is judged by it."""
        judged = self.data.tasks is not None or self.evaluation.on
        return judged and self.training.eval_interval is not None

    @property
    def architecture(self) -> Architecture:
        """The architecture of the model that the run trains."""
        return Architecture(model=self.model, moe=self.moe, vocab_size=self.data.vocab_size)

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Global numbers of the MoE layers, from 1; empty for a dense model."""
        return self.architecture.moe_layers

    @property
    def routed_layers(self) -> tuple[int, ...]:
        """Numbers of all layers with experts, from 1: also those for multi-token prediction."""
        return self.architecture.routed_layers

    @property
    def expert_hidden_size(self) -> int:
        """Inner width of one expert, in features."""
        return self.architecture.expert_hidden_size

    @property
    def max_position_embeddings(self) -> int:
        """Longest sequence the model can read, in tokens."""
        return self.model.max_position_embeddings or self.data.sequence_length

    @property
    def freezes(self) -> bool:
        """Whether anything may be frozen."""
        return self.adapter.on or self.finetune.freezes

    @property
    def states_apart(self) -> bool:
        """Whether checkpoints hold the optimizer's states layer by layer and expert by expert."""
        return self.adapter.on or self.finetune.states_apart

    def validate(self, world_size: int | None = None) -> None:
        """Check every rule that involves two sections.

        Args:
            world_size: Number of processes; None checks only what does not depend on it.

        Raises:
            ConfigError: If two sections contradict each other.
            TopologyError: If the parallel sizes do not fit the model or the processes.
        """
        validation.check_layers(self.model, self.moe)
        if world_size is not None:
            self.parallel.validate_processes(world_size, num_experts=self.moe.num_experts)
        validation.check_sequence(self.model, self.data, self.parallel)
        validation.check_prediction(self.model, self.parallel, self.megatron)
        validation.check_finetune(self.finetune, self.model, self.moe, self.parallel, self.megatron)
        validation.check_adapters(self.adapter, self.model, self.moe)
        validation.check_expert_failure(self.moe, self.recovery)
        validation.check_quantiles(self.moe, self.training, self.data)
        validation.check_restart(self.recovery, self.checkpoint, self.megatron)
        validation.check_schedule(self.training, self.data, self.megatron)
        validation.check_retention(self.checkpoint, self.training)
        validation.check_evaluation(self.evaluation, self.data, self.training)
        self.parallel.validate_experts(self.moe.num_experts)
        if not any(flag in self.megatron for flag in validation.UNEVEN_PIPELINE_FLAGS):
            self.parallel.validate_layers(self.model.num_layers)
        validation.check_widths(self.model, self.moe, self.parallel)
        validation.check_moe_splitting(self.model, self.moe, self.parallel)
        if world_size is not None:
            validation.check_batch(self.training, self.parallel, world_size, self.megatron)


def _normalized_flags(flags: Mapping[str, MegatronValue]) -> dict[str, MegatronValue]:
    """Flags spelled with dashes; null ones are left out."""
    spelled: dict[str, str] = {}
    for name in flags:
        flag = name.replace("_", "-")
        if not flag.strip("-") or flag.startswith("-"):
            raise ConfigError(
                "megatron needs flag names without leading dashes, such as "
                f"'manual-gc', not '{name}'."
            )
        if flag in spelled:
            raise ConfigError(
                f"megatron gives the flag '{flag}' twice, as '{spelled[flag]}' and '{name}'; "
                "keep one."
            )
        spelled[flag] = name
    return {flag: flags[name] for flag, name in spelled.items() if flags[name] is not None}
