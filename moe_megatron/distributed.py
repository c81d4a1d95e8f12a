"""Training with several processes, from Python."""

from moe_megatron.training.distributed_trainer import DistributedMoETrainer, in_processes

__all__ = ["DistributedMoETrainer", "in_processes"]
