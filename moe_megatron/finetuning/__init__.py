"""Fine-tuning: from weights to weights, by runs of the one loop that keep most of a model."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe_megatron.finetuning.task_adaptive import TaskAdaptiveMoE

__all__ = ["TaskAdaptiveMoE"]


def __getattr__(name: str) -> Any:
    """What loads torch, when it is first used."""
    if name == "TaskAdaptiveMoE":
        from moe_megatron.finetuning.task_adaptive import TaskAdaptiveMoE

        return TaskAdaptiveMoE
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
