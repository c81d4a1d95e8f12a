"""Kimi K2: DeepSeek-V3's tensors and function, with more experts, fewer heads and no groups.

transformers has no class of this name; its DeepSeek-V3 computes it, so that none of the code that
comes with published checkpoints is needed. Their tokenizer is such code, and is not converted.
"""

from dataclasses import replace

from moe_megatron.families.deepseek_v3 import DEEPSEEK_V3
from moe_megatron.families.registry import register_family

KIMI_K2 = replace(DEEPSEEK_V3, name="kimi_k2", computed_by="deepseek_v3")

register_family(KIMI_K2)
