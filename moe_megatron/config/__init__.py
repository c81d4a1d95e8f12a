"""Typed, validated configuration: frozen dataclasses, YAML files and packaged presets.

    config = load_config("demo_moe")
    config = apply_overrides(config, {"moe.top_k": 1, "moe.router.pre_softmax": True})
    config.validate(world_size=2)

It works on a login node: it imports neither torch nor Megatron, and opens nothing but YAML files.
"""

from moe_megatron.config.adapter import AdapterConfig
from moe_megatron.config.architecture import Architecture
from moe_megatron.config.checkpoint import CheckpointConfig
from moe_megatron.config.data import DataConfig
from moe_megatron.config.expert import ExpertConfig
from moe_megatron.config.loader import (
    CONFIG_FILE,
    dump_yaml,
    list_presets,
    load_config,
    parse_override,
)
from moe_megatron.config.mapping import apply_overrides, from_mapping, to_mapping
from moe_megatron.config.model import ModelConfig
from moe_megatron.config.model_parts import LatentAttention, RopeScaling, SlidingWindow
from moe_megatron.config.moe import MoEConfig
from moe_megatron.config.parallel import ParallelConfig
from moe_megatron.config.recovery import RecoveryConfig
from moe_megatron.config.router import RouterConfig
from moe_megatron.config.run import RunConfig
from moe_megatron.config.telemetry import TelemetryConfig
from moe_megatron.config.training import TrainingConfig
from moe_megatron.config.within import Within

__all__ = [
    "CONFIG_FILE",
    "AdapterConfig",
    "Architecture",
    "CheckpointConfig",
    "DataConfig",
    "ExpertConfig",
    "LatentAttention",
    "MoEConfig",
    "ModelConfig",
    "ParallelConfig",
    "RecoveryConfig",
    "RopeScaling",
    "RouterConfig",
    "RunConfig",
    "SlidingWindow",
    "TelemetryConfig",
    "TrainingConfig",
    "Within",
    "apply_overrides",
    "dump_yaml",
    "from_mapping",
    "list_presets",
    "load_config",
    "parse_override",
    "to_mapping",
]
