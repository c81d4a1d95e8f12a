"""DeepSeek-V3 (arXiv:2412.19437), and Kimi K2 (arXiv:2507.20534), which is of its kind."""

from moe_megatron.architectures.named import TINY, Fields, NamedArchitecture, Size
from moe_megatron.config import RunConfig


class DeepSeekV3(NamedArchitecture):
    """Latent attention, a shared expert beside many small ones, and a bias that balances them.

    Experts are scored by sigmoids and chosen, with the bias, from the best groups; the first layers
    are dense; a further layer predicts the token after next (arXiv:2412.19437).
    """

    table = "architectures/deepseek_v3"
    sizes = {
        TINY: Size(table="deepseek_v3_tiny"),
        "671b": Size(
            table="deepseek_v3",
            total="671B",
            active="36.6B",
            source="README_WEIGHTS.md of deepseek-ai/DeepSeek-V3",
            counts_embedding=False,
        ),
    }
    lacks = (
        "Groups of experts are ranked by their best top_k / group_top_k experts: 2, as published."
    )

    @classmethod
    def of_layers(cls, config: RunConfig, num_layers: int) -> Fields:
        """As many dense layers at the beginning as in the table, and at least one MoE layer."""
        dense = min(config.moe_layers[0] - 1, num_layers - 1)
        return {"moe.layer_frequency": [int(layer >= dense) for layer in range(num_layers)]}


class KimiK2(DeepSeekV3):
    """DeepSeek-V3 with more experts, fewer heads, one dense layer, no groups (arXiv:2507.20534)."""

    table = "architectures/kimi_k2"
    sizes = {
        TINY: Size(table="kimi_k2_tiny"),
        "1t": Size(
            table="kimi_k2",
            total="1.04T",
            active="32.6B",
            source="arXiv:2507.20534",
            note="its config.json gives 1.026 T; one more MoE layer would give 1.04 T",
        ),
    }
    lacks = "It trained with Muon and clipped queries and keys (QK-clip); neither is here."
