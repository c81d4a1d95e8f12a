"""Mixtral (arXiv:2401.04088)."""

from typing import Any

from moe_megatron.architectures.named import TINY, Fields, NamedArchitecture, Size
from moe_megatron.config.arguments import shown
from moe_megatron.errors import ConfigError


def _normalized(value: Any) -> Fields:
    if not isinstance(value, bool):
        raise ConfigError(f"normalize_expert_weights must be True or False, not {shown(value)}.")
    return {"moe.router.pre_softmax": not value}


class MixtralModel(NamedArchitecture):
    """Each token goes to two of eight experts, in every layer.

        MixtralModel(num_experts=16, top_k=2, normalize_expert_weights=True)

    y = sum over the top-k experts of softmax(their logits)_e E_e(x) (arXiv:2401.04088).

    Args:
        num_experts: Experts of each layer.
        top_k: Experts of a token.
        normalize_expert_weights: Whether the weights of a token's experts sum to 1: the softmax is
            over the chosen experts, and otherwise over all.
        **options: As for `NamedArchitecture`.
    """

    table = "architectures/mixtral"
    arguments = {"normalize_expert_weights": _normalized}
    sizes = {
        TINY: Size(table="mixtral_tiny"),
        "8x7b": Size(
            table="mixtral_8x7b",
            total="46.7B",
            active="12.9B",
            source="mistral.ai/news/mixtral-of-experts",
        ),
        "8x22b": Size(
            table="mixtral_8x22b",
            total="141B",
            active="39B",
            source="mistral.ai/news/mixtral-8x22b",
        ),
    }
