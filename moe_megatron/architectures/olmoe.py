"""OLMoE (arXiv:2409.02060)."""

from moe_megatron.architectures.named import TINY, NamedArchitecture, Size


class OLMoE(NamedArchitecture):
    """Each token goes to 8 of 64 small experts, in every layer; queries and keys are normalized.

    The softmax is over all experts, so the weights of the chosen ones sum to less than 1
    (arXiv:2409.02060).
    """

    table = "architectures/olmoe"
    sizes = {
        TINY: Size(table="olmoe_tiny"),
        "1b_7b": Size(table="olmoe_1b_7b", total="6.9B", active="1.3B", source="arXiv:2409.02060"),
    }
    lacks = "Queries, keys and values are not clipped (clip_qkv), which the paper does not need."
