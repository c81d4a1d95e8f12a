"""Models that users import: `MoEModel`, and published ones by name.

    OLMoE.from_pretrained("allenai/OLMoE-1B-7B-0924")

is `MoEModel.from_pretrained` that takes one family alone. What `MoEModel` does not compute is
refused with what it would need.
"""

from pathlib import Path
from typing import ClassVar

import torch

from moe_megatron.checkpoint import model_folder  # noqa: F401  # reads and writes other formats
from moe_megatron.config.arguments import explained
from moe_megatron.model.moe_model import MoEModel

__all__ = [
    "GPTOSS",
    "DeepSeekV2",
    "DeepSeekV3",
    "DeepSeekV32",
    "Dots1",
    "ERNIE45MoE",
    "GLM4MoE",
    "GLM4MoELite",
    "GraniteMoE",
    "GraniteMoEShared",
    "HunYuanMoE",
    "KimiK2",
    "Llama",
    "Llama4",
    "MiniMaxM2",
    "Mistral",
    "Mixtral",
    "MoEModel",
    "OLMoE",
    "PhiMoE",
    "Qwen2",
    "Qwen2MoE",
    "Qwen3",
    "Qwen3MoE",
    "Qwen3Next",
    "Qwen35MoE",
    "SwitchTransformers",
]


@explained
class _Published:
    """One family."""

    family: ClassVar[str]
    """`model_type` in its `config.json`."""

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> MoEModel:
        """Load a model of this family, in evaluation mode.

        Args:
            path: A Hugging Face model folder, a Megatron checkpoint, or an id of the Hub.
            device: Where to put the weights.
            dtype: Precision to convert the weights to; None keeps the saved one.

        Raises:
            CheckpointError: It is of another family, damaged, or a model that `MoEModel` does not
                compute.
            MappingError: Its tensors are not those of its family.
        """
        return MoEModel._from_foreign(path, device=device, dtype=dtype, family=cls.family)


class OLMoE(_Published):
    """OLMoE (arXiv:2409.02060)."""

    family = "olmoe"


class Mixtral(_Published):
    """Mixtral 8x7B and 8x22B (arXiv:2401.04088)."""

    family = "mixtral"


class Qwen2MoE(_Published):
    """Qwen1.5-MoE and Qwen2-MoE (arXiv:2407.10671)."""

    family = "qwen2_moe"


class Qwen3MoE(_Published):
    """Qwen3-30B-A3B and its relatives (arXiv:2505.09388)."""

    family = "qwen3_moe"


class DeepSeekV2(_Published):
    """DeepSeek-V2 (arXiv:2405.04434)."""

    family = "deepseek_v2"


class DeepSeekV3(_Published):
    """DeepSeek-V3 and R1 (arXiv:2412.19437)."""

    family = "deepseek_v3"


class GPTOSS(_Published):
    """GPT-OSS (arXiv:2508.10925)."""

    family = "gpt_oss"


class GLM4MoE(_Published):
    """GLM-4.5 (arXiv:2508.06471)."""

    family = "glm4_moe"


class GraniteMoE(_Published):
    """Granite 3 MoE."""

    family = "granitemoe"


class KimiK2(_Published):
    """Kimi K2 (arXiv:2507.20534)."""

    family = "kimi_k2"


class GLM4MoELite(_Published):
    """GLM-4.7-Flash."""

    family = "glm4_moe_lite"


class Dots1(_Published):
    """dots.llm1 (arXiv:2506.05767)."""

    family = "dots1"


class MiniMaxM2(_Published):
    """MiniMax-M2."""

    family = "minimax_m2"


class ERNIE45MoE(_Published):
    """ERNIE 4.5."""

    family = "ernie4_5_moe"


class HunYuanMoE(_Published):
    """HunYuan-A13B."""

    family = "hunyuan_v1_moe"


class GraniteMoEShared(_Published):
    """Granite MoE with a shared expert."""

    family = "granitemoeshared"


class Qwen3Next(_Published):
    """Qwen3-Next: it only converts, and is refused with the reason."""

    family = "qwen3_next"


class Qwen35MoE(_Published):
    """The text model of Qwen3.5-MoE: it only converts."""

    family = "qwen3_5_moe_text"


class DeepSeekV32(_Published):
    """DeepSeek-V3.2 (arXiv:2512.02556): it only converts."""

    family = "deepseek_v32"


class Llama4(_Published):
    """The text model of Llama 4: it only converts."""

    family = "llama4_text"


class PhiMoE(_Published):
    """Phi-3.5-MoE (arXiv:2404.14219)."""

    family = "phimoe"


class SwitchTransformers(_Published):
    """Switch Transformers (arXiv:2101.03961)."""

    family = "switch_transformers"


class Llama(_Published):
    """Llama, dense: what upcycling starts from (arXiv:2302.13971)."""

    family = "llama"


class Mistral(_Published):
    """Mistral 7B, dense (arXiv:2310.06825)."""

    family = "mistral"


class Qwen2(_Published):
    """Qwen2 and Qwen2.5, dense (arXiv:2407.10671)."""

    family = "qwen2"


class Qwen3(_Published):
    """Qwen3, dense (arXiv:2505.09388)."""

    family = "qwen3"
