"""Switch Transformer (arXiv:2101.03961)."""

from moe_megatron.architectures.named import (
    TINY,
    Fields,
    NamedArchitecture,
    Size,
    every_other,
    field,
)
from moe_megatron.config import RunConfig


def _published(preset: str, total: str) -> Size:
    return Size(
        table=preset,
        total=total,
        source="arXiv:2101.03961",
        note="of encoder and decoder, which `families/switch_transformers.py` counts; this is the "
        "decoder",
    )


class SwitchTransformer(NamedArchitecture):
    """Each token goes to one expert, of every other layer, which drops what exceeds its capacity.

        SwitchTransformer(num_experts=64, expert_capacity_factor=1.25, jitter_noise=0.01)

    y = p_e(x) E_e(x), e = argmax p(x): the output is scaled by the probability of the expert, so
    that the router learns (arXiv:2101.03961).

    Args:
        num_experts: Experts of each MoE layer.
        expert_capacity_factor: Tokens that an expert takes, as a multiple of an even share; None:
            none are dropped.
        jitter_noise: x, of noise from [1 - x, 1 + x] on the router's input in training.
        **options: As for `NamedArchitecture`.
    """

    table = "architectures/switch"
    arguments = {
        "expert_capacity_factor": field("moe.capacity_factor"),
        "jitter_noise": field("moe.input_jitter"),
    }
    sizes = {
        TINY: Size(table="switch_tiny"),
        "base_8": Size(table="switch_base_8"),
        "base_16": _published("switch_base_16", "1.1B"),
        "base_32": _published("switch_base_32", "2.0B"),
        "base_64": _published("switch_base_64", "3.8B"),
        "base_128": _published("switch_base_128", "7.4B"),
    }
    lacks = (
        "The published models have an encoder, too, and relative positions, relu and unscaled "
        "attention: this is their decoder, with rotary positions and gelu."
    )

    @classmethod
    def of_layers(cls, config: RunConfig, num_layers: int) -> Fields:
        """Every other layer has experts."""
        return {"moe.layer_frequency": every_other(num_layers)}
