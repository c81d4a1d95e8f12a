"""Published MoE architectures by name, each a small table over one description of a model.

    model = SwitchTransformer(num_experts=16, expert_capacity_factor=1.25, jitter_noise=0.01)
    MoETrainer(model).train(["some text", "some more"])

Each class is a `MoEModel` that begins with the choices of its paper at a size for a laptop. Keyword
arguments win. `OLMoE.of_size("1b_7b")` has a published size; the same tables are presets for runs
in Megatron: `moe-megatron train --config olmoe_1b_7b`. What the engines lack of an architecture is
said in docs/architectures.md.

The package knows neither training nor tensors: what a table says, `model` and `mcore` compute.
"""

from moe_megatron.architectures.custom import CustomMoE
from moe_megatron.architectures.deepseek_v3 import DeepSeekV3, KimiK2
from moe_megatron.architectures.glam import GLaMMoE
from moe_megatron.architectures.gpt_oss import GPTOSS
from moe_megatron.architectures.mixtral import MixtralModel
from moe_megatron.architectures.named import NamedArchitecture, Size
from moe_megatron.architectures.olmoe import OLMoE
from moe_megatron.architectures.qwen3_moe import Qwen3MoE
from moe_megatron.architectures.switch import SwitchTransformer

__all__ = [
    "GPTOSS",
    "CustomMoE",
    "DeepSeekV3",
    "GLaMMoE",
    "KimiK2",
    "MixtralModel",
    "NamedArchitecture",
    "OLMoE",
    "Qwen3MoE",
    "Size",
    "SwitchTransformer",
]
