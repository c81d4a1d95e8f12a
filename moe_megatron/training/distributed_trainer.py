"""`DistributedMoETrainer`: `MoETrainer` over several processes, which it starts itself.

Under `torchrun` or a batch system it takes the processes that are there. Elsewhere, in a notebook
for example, it starts them on this machine, waits for them, and puts what they have trained into
the model (`processes`). `in_processes` makes any other trainer do so.
"""

import os
from collections.abc import Mapping
from typing import Any

from moe_megatron.config import apply_overrides
from moe_megatron.config.arguments import explained, shown, whole
from moe_megatron.errors import ConfigError, TopologyError
from moe_megatron.mcore import world
from moe_megatron.model.moe_model import MoEModel
from moe_megatron.platform.device import choose_num_processes, detect_device
from moe_megatron.training.balancing import Balancing
from moe_megatron.training.trainer import MoETrainer

_LAYOUT = {
    "expert_parallel_size": "parallel.expert_parallel_size",
    "model_parallel_size": "parallel.tensor_parallel_size",
    "pipeline_stages": "parallel.pipeline_parallel_size",
}


@explained
class DistributedMoETrainer(MoETrainer):
    """Trains a `MoEModel` with several processes, in any parallel layout.

        trainer = DistributedMoETrainer(model, world_size=2, expert_parallel_size=2)
        result = trainer.train(texts, max_steps=100)

    It is used as `MoETrainer` is. The processes that are left over by the sizes given here work on
    different sequences of a batch.

    Args:
        model: The model to train; its weights are replaced by the trained ones.
        world_size: Number of processes. None: those that a launcher has started, or one for each
            GPU of this machine, or two on a CPU.
        expert_parallel_size: Processes that share the experts of a layer.
        model_parallel_size: Processes that share each matrix (tensor parallelism).
        pipeline_stages: Groups of processes that have different layers (pipeline parallelism).
        load_balancing: As for `MoETrainer`, and so are all other arguments.
        router_z_loss_coef: As for `MoETrainer`.
        overrides: Fields of the configuration, such as {"parallel.context_parallel_size": 2}.
        **options: Further arguments of `MoETrainer`.

    Raises:
        ConfigError: An argument is invalid.
        TopologyError: The sizes do not fit each other, the model, or the processes that are there.
    """

    def __init__(
        self,
        model: MoEModel,
        world_size: int | None = None,
        expert_parallel_size: int = 1,
        model_parallel_size: int = 1,
        pipeline_stages: int = 1,
        *,
        load_balancing: Balancing | None = None,
        router_z_loss_coef: float = 0.01,
        overrides: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, load_balancing, router_z_loss_coef, overrides=overrides, **options)
        in_processes(
            self,
            world_size,
            expert_parallel_size,
            model_parallel_size,
            pipeline_stages,
        )


def in_processes[T: MoETrainer](
    trainer: T,
    world_size: int | None = None,
    expert_parallel_size: int = 1,
    model_parallel_size: int = 1,
    pipeline_stages: int = 1,
) -> T:
    """Let a trainer train with several processes, in any parallel layout.

        lora = in_processes(MoELoRA(model, r=8), world_size=2, expert_parallel_size=2)
        lora.train(texts)

    Args:
        trainer: A `MoETrainer`, `FineTuner` or `MoELoRA`; it is used as before.
        world_size: As for `DistributedMoETrainer`, and so are the others.
        expert_parallel_size: Processes that share the experts of a layer.
        model_parallel_size: Processes that share each matrix (tensor parallelism).
        pipeline_stages: Groups of processes that have different layers (pipeline parallelism).

    Returns:
        The trainer.

    Raises:
        ConfigError: A size is invalid, or given to the trainer, too.
        TopologyError: The sizes do not fit each other, the model, or the processes that are there.
    """
    if not isinstance(trainer, MoETrainer):
        raise ConfigError(
            f"in_processes(...) needs a trainer, such as MoELoRA(model), not {shown(trainer)}."
        )
    sizes = {
        "expert_parallel_size": whole("expert_parallel_size", expert_parallel_size),
        "model_parallel_size": whole("model_parallel_size", model_parallel_size),
        "pipeline_stages": whole("pipeline_stages", pipeline_stages),
    }
    for name, field in _LAYOUT.items():
        if field in trainer._overrides:
            raise ConfigError(
                f"overrides cannot set {field}, which is decided by {name} of "
                "DistributedMoETrainer(...) or in_processes(...); leave it out of overrides."
            )
    layout = {_LAYOUT[name]: size for name, size in sizes.items()}
    number = _num_processes(world_size)
    config = apply_overrides(trainer._with_overrides(), layout)
    config.parallel.validate_world(
        number,
        num_experts=config.moe.num_experts,
        num_layers=config.model.num_layers,
    )
    trainer._overrides = {**trainer._overrides, **layout}
    trainer._processes = None if _has_launcher() or number == 1 else number
    return trainer


def _num_processes(wanted: int | None) -> int:
    """The number of processes that train.

    Raises:
        ConfigError: It is not a positive number.
        TopologyError: A launcher has started another number, or there are fewer GPUs.
    """
    wanted = None if wanted is None else whole("world_size", wanted)
    if _has_launcher():
        if wanted not in (None, world.size()):
            raise TopologyError(
                f"world_size is {wanted}, but this program was started in {world.size()} "
                f"process(es), which is what it trains with; start it with `torchrun "
                f"--nproc-per-node {wanted}`, or leave world_size out."
            )
        return world.size()
    return choose_num_processes(detect_device().value, wanted).value


def _has_launcher() -> bool:
    """Whether torchrun or a batch system has started this process as one of several."""
    return world.size() > 1 or "RANK" in os.environ
