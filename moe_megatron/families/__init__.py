"""Mapping tables: where each tensor of a Hugging Face model lies in a Megatron checkpoint.

Data alone, without torch, Megatron or transformers. `FAMILIES` has a table a family;
`docs/adding_a_family.md` shows how to add one.
"""

from collections.abc import Mapping
from typing import Any

from moe_megatron.config import RunConfig
from moe_megatron.config.checks import join_words, nearest
from moe_megatron.errors import MappingError
from moe_megatron.families.choice import fitting_family
from moe_megatron.families.deepseek_v2 import DEEPSEEK_V2
from moe_megatron.families.deepseek_v3 import DEEPSEEK_V3
from moe_megatron.families.dense import LLAMA, MISTRAL, QWEN2, QWEN3
from moe_megatron.families.family import Family
from moe_megatron.families.geometry import Geometry
from moe_megatron.families.glm4_moe import GLM4_MOE
from moe_megatron.families.gpt_oss import GPT_OSS
from moe_megatron.families.granitemoe import GRANITEMOE
from moe_megatron.families.mixtral import MIXTRAL
from moe_megatron.families.olmoe import OLMOE
from moe_megatron.families.phimoe import PHIMOE
from moe_megatron.families.qwen2_moe import QWEN2_MOE
from moe_megatron.families.qwen3_moe import QWEN3_MOE
from moe_megatron.families.switch_transformers import SWITCH_TRANSFORMERS

_EXPORTED = (
    *(MIXTRAL, QWEN3_MOE, QWEN2_MOE, OLMOE, GLM4_MOE, DEEPSEEK_V3, DEEPSEEK_V2),
    *(GRANITEMOE, PHIMOE, LLAMA, QWEN3, QWEN2),
)
"""Families of natively trained models, in order of preference. The others compute what Megatron
does not, or add nothing."""

_ALL = (*_EXPORTED, GPT_OSS, SWITCH_TRANSFORMERS, MISTRAL)

FAMILIES: dict[str, Family] = {
    model_type: family for family in _ALL for model_type in (family.name, *family.model_types)
}
"""Families by the `model_type` of their configurations."""


def family_of(hf_config: Mapping[str, Any]) -> Family:
    """The family of a Hugging Face configuration.

    Args:
        hf_config: What `config.json` holds.

    Raises:
        MappingError: It names no family, or one that has no table.
    """
    model_type = hf_config.get("model_type")
    if not isinstance(model_type, str):
        raise MappingError(
            "config.json names no 'model_type'; take the config.json that belongs to the weights."
        )
    if model_type not in FAMILIES:
        raise MappingError(
            f"there is no mapping table for '{model_type}' models.{nearest(model_type, FAMILIES)} "
            f"Known are {join_words(sorted(FAMILIES), 'and')}; docs/adding_a_family.md shows how "
            "to add one."
        )
    return FAMILIES[model_type]


def family_of_run(run_config: RunConfig) -> Family:
    """The family that a natively trained model can be exported as.

    Raises:
        MappingError: None holds it; names the nearest and what it cannot say.
    """
    return fitting_family(run_config, _EXPORTED)


__all__ = ("FAMILIES", "Family", "Geometry", "family_of", "family_of_run")
