"""GLaM (arXiv:2112.06905)."""

from moe_megatron.architectures.named import (
    TINY,
    Fields,
    NamedArchitecture,
    Size,
    every_other,
    field,
)
from moe_megatron.config import RunConfig


class GLaMMoE(NamedArchitecture):
    """Each token goes to two experts of every other layer, to the second one by chance.

        GLaMMoE(num_experts=64, second_expert_threshold=0.2)

    The router is GShard's (arXiv:2006.16668), the architecture that of arXiv:2112.06905.

    Args:
        num_experts: Experts of each MoE layer.
        second_expert_threshold: Probability from which on the second expert is used for sure.
        random_second: Whether the second expert is drawn in training.
        **options: As for `NamedArchitecture`.
    """

    table = "architectures/glam"
    arguments = {
        "second_expert_threshold": field("moe.router.second_expert_threshold"),
        "random_second": field("moe.router.random_second"),
    }
    sizes = {
        TINY: Size(table="glam_tiny"),
        "64b_64e": Size(
            table="glam_64b_64e",
            total="1.2T",
            active="96.6B",
            source="arXiv:2112.06905",
        ),
    }
    lacks = (
        "Relative positions are rotary ones here, and dense layers are gated by silu, not by gelu."
    )

    @classmethod
    def of_layers(cls, config: RunConfig, num_layers: int) -> Fields:
        """Every other layer has experts."""
        return {"moe.layer_frequency": every_other(num_layers)}
