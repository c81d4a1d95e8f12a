"""Parameter-efficient fine-tuning that users import: `MoELoRA`, and adapters as data."""

from moe_megatron.adapters.low_rank import Adapter, LowRank
from moe_megatron.adapters.model_adapters import ModelAdapters
from moe_megatron.finetuning.moe_lora import MoELoRA

__all__ = ["Adapter", "LowRank", "MoELoRA", "ModelAdapters"]
