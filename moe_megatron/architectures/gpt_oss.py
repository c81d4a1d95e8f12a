"""GPT-OSS (arXiv:2508.10925)."""

from moe_megatron.architectures.named import TINY, Fields, NamedArchitecture, Size
from moe_megatron.config import RunConfig


class GPTOSS(NamedArchitecture):
    """Attention with sinks, and with a window in every other layer; experts with biases.

    The experts' activation is clamped: (clamp(u) + 1) * g * sigmoid(1.702 g), with g clamped from
    above (arXiv:2508.10925).
    """

    table = "architectures/gpt_oss"
    sizes = {
        TINY: Size(table="gpt_oss_tiny"),
        "20b": Size(
            table="gpt_oss_20b",
            total="20.91B",
            active="3.61B",
            source="arXiv:2508.10925",
            counts_embedding=False,
        ),
        "120b": Size(
            table="gpt_oss_120b",
            total="116.83B",
            active="5.13B",
            source="arXiv:2508.10925",
            counts_embedding=False,
        ),
    }
    lacks = "The 4-bit experts (MXFP4) of the published weights are not trained here."

    @classmethod
    def of_layers(cls, config: RunConfig, num_layers: int) -> Fields:
        """The first layer and every second one after it have a window."""
        return {"model.sliding_window.layers": [1 - layer % 2 for layer in range(num_layers)]}
