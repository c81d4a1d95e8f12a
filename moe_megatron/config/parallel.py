"""How one model is split over processes, and whether a number of processes can hold it.

Attention and experts share the processes but cut them differently: attention by tensor x pipeline
x context, experts by expert tensor x expert x pipeline. The number of processes must be a
multiple of both products; the quotient is data parallelism. This module knows counts only;
`validation` checks whether widths and heads divide.
"""

import math
from dataclasses import dataclass

from moe_megatron.config import checks
from moe_megatron.config.conform import conform
from moe_megatron.config.fields import setting
from moe_megatron.errors import TopologyError


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig:
    """Parallel sizes, in processes.

    Raises:
        ConfigError: If a size is below 1.
        TopologyError: If there are virtual stages but no pipeline.
    """

    tensor_parallel_size: int = setting(1, flag="tensor-model-parallel-size")
    """Processes that share each attention and dense matrix."""

    pipeline_parallel_size: int = setting(1, flag="pipeline-model-parallel-size")
    """Processes that the layers are distributed over, one stage each."""

    virtual_pipeline_stages: int | None = setting(None, flag="num-virtual-stages-per-pipeline-rank")
    """Virtual stages of each pipeline process, which reduce its idle time; null: one."""

    expert_parallel_size: int = setting(1, flag="expert-model-parallel-size")
    """Processes that the experts of a layer are distributed over."""

    expert_tensor_parallel_size: int | None = setting(None, flag="expert-tensor-parallel-size")
    """Processes that share each expert's matrices; null: tensor_parallel_size."""

    context_parallel_size: int = setting(1, flag="context-parallel-size")
    """Processes that share the tokens of one sequence."""

    sequence_parallel: bool | None = setting(None, flag="sequence-parallel")
    """Split norms and router inputs along the sequence; null: on with tensor parallelism."""

    distributed_optimizer: bool = setting(True, flag="use-distributed-optimizer")
    """Shard the optimizer's state over the data-parallel processes."""

    def __post_init__(self) -> None:
        conform(self)
        checks.at_least(
            self,
            1,
            "tensor_parallel_size",
            "pipeline_parallel_size",
            "virtual_pipeline_stages",
            "expert_parallel_size",
            "expert_tensor_parallel_size",
            "context_parallel_size",
        )
        if self.stages_per_process > 1 and self.pipeline_parallel_size == 1:
            raise TopologyError(
                f"virtual_pipeline_stages ({self.virtual_pipeline_stages}) needs a "
                "pipeline_parallel_size of at least 2, not 1; raise it, or set "
                "virtual_pipeline_stages to null."
            )

    @property
    def expert_tensor_size(self) -> int:
        """Processes that share each expert's matrices."""
        if self.expert_tensor_parallel_size is None:
            return self.tensor_parallel_size
        return self.expert_tensor_parallel_size

    @property
    def stages_per_process(self) -> int:
        """Virtual pipeline stages on each process; 1 without virtual stages."""
        return self.virtual_pipeline_stages or 1

    @property
    def attention_processes(self) -> int:
        """Processes that together hold one copy of the attention weights and one sequence."""
        return self.tensor_parallel_size * self.pipeline_parallel_size * self.context_parallel_size

    @property
    def expert_processes(self) -> int:
        """Processes that together hold one copy of all experts."""
        return self.expert_tensor_size * self.expert_parallel_size * self.pipeline_parallel_size

    @property
    def world_size_step(self) -> int:
        """The smallest number of processes that works; every other is a multiple of it."""
        return math.lcm(self.attention_processes, self.expert_processes)

    def choose_sequence_parallel(self) -> tuple[bool, str]:
        """Decide whether to use sequence parallelism.

        Returns:
            The decision, and its reason for the log.
        """
        if self.tensor_parallel_size == 1:
            return False, "tensor_parallel_size is 1, so there is nothing to split"
        if self.sequence_parallel is None:
            return True, f"tensor_parallel_size is {self.tensor_parallel_size}"
        return self.sequence_parallel, "set in the configuration"

    def data_parallel_size(self, world_size: int) -> int:
        """Number of copies of the model, each of which reads different sequences.

        Args:
            world_size: Number of processes; `validate_world` must accept it.
        """
        return world_size // self.attention_processes

    def validate_world(self, world_size: int, *, num_experts: int | None, num_layers: int) -> None:
        """Check that this many processes can hold this many experts and layers.

        Args:
            world_size: Number of processes.
            num_experts: Experts in each MoE layer; None for a dense model.
            num_layers: Transformer layers.

        Raises:
            TopologyError: If they cannot; the message lists sizes that work.
        """
        self.validate_experts(num_experts)
        self.validate_layers(num_layers)
        self.validate_processes(world_size, num_experts=num_experts)

    def validate_experts(self, num_experts: int | None) -> None:
        """Check that the experts can be distributed evenly; None is a dense model."""
        size = self.expert_parallel_size
        if num_experts is None:
            if size > 1:
                raise TopologyError(
                    f"expert_parallel_size ({size}) needs experts, but this model is dense; set "
                    "expert_parallel_size to 1, or give moe.num_experts."
                )
        elif num_experts % size:
            raise TopologyError(
                f"expert_parallel_size ({size}) must divide num_experts ({num_experts}); "
                f"try {checks.join_words(checks.divisors(num_experts))}."
            )

    def validate_layers(self, num_layers: int) -> None:
        """Check that the layers can be distributed evenly over all (virtual) pipeline stages."""
        pipeline, virtual = self.pipeline_parallel_size, self.stages_per_process
        if num_layers % (pipeline * virtual) == 0:
            return
        if num_layers % pipeline == 0:
            fitting = checks.join_words(checks.divisors(num_layers // pipeline))
            raise TopologyError(
                f"pipeline_parallel_size ({pipeline}) x virtual_pipeline_stages ({virtual}) must "
                f"divide num_layers ({num_layers}); try virtual_pipeline_stages {fitting}."
            )
        raise TopologyError(
            f"pipeline_parallel_size ({pipeline}) must divide num_layers ({num_layers}); "
            f"try {checks.join_words(checks.divisors(num_layers))}, or cut the layers unevenly "
            "with megatron.pipeline-model-parallel-layout."
        )

    def validate_processes(self, world_size: int, *, num_experts: int | None) -> None:
        """Check that `world_size` is a multiple of what attention and what experts need."""
        if world_size < 1:
            raise TopologyError(f"world size must be at least 1, not {world_size}.")
        if world_size % self.attention_processes:
            raise TopologyError(
                f"world size ({world_size}) is not divisible by tensor_parallel_size "
                f"({self.tensor_parallel_size}) x pipeline_parallel_size "
                f"({self.pipeline_parallel_size}) x context_parallel_size "
                f"({self.context_parallel_size}) = {self.attention_processes}; "
                f"{self._processes_to_start(world_size)}, or use smaller parallel sizes."
            )
        if world_size % self.expert_processes:
            raise TopologyError(
                f"world size ({world_size}) is not divisible by expert_tensor_parallel_size "
                f"({self.expert_tensor_size}) x expert_parallel_size "
                f"({self.expert_parallel_size}) x pipeline_parallel_size "
                f"({self.pipeline_parallel_size}) = {self.expert_processes}; "
                f"{self._processes_to_start(world_size)}, or "
                f"{self._expert_remedy(world_size, num_experts)}."
            )

    def _processes_to_start(self, world_size: int) -> str:
        step = self.world_size_step
        below = world_size // step * step
        counts = [count for count in (below, below + step) if count]
        return f"start {checks.join_words(counts)} processes"

    def _expert_remedy(self, world_size: int, num_experts: int | None) -> str:
        per_expert_size = self.expert_tensor_size * self.pipeline_parallel_size
        fitting = [
            size
            for size in checks.divisors(num_experts or 1)
            if world_size % (per_expert_size * size) == 0
        ]
        if not fitting:
            return "set expert_tensor_parallel_size to 1"
        return f"set expert_parallel_size to {checks.join_words(fitting)}"
