"""`from moe_megatron.distributed import DistributedMoETrainer`."""

from moe_megatron.training.distributed_trainer import DistributedMoETrainer

__all__ = ["DistributedMoETrainer"]
