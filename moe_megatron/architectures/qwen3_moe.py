"""Qwen3-MoE (arXiv:2505.09388)."""

from moe_megatron.architectures.named import TINY, NamedArchitecture, Size


class Qwen3MoE(NamedArchitecture):
    """Each token goes to 8 of 128 small experts, in every layer, balanced over the global batch.

    Heads are wider than hidden_size / heads, and queries and keys are normalized head by head
    (arXiv:2505.09388).
    """

    table = "architectures/qwen3_moe"
    sizes = {
        TINY: Size(table="qwen3_moe_tiny"),
        "30b_a3b": Size(
            table="qwen3_30b_a3b",
            total="30.5B",
            active="3.3B",
            source="huggingface.co/Qwen/Qwen3-30B-A3B",
            note="3.35 B, published as 3.3",
        ),
        "235b_a22b": Size(
            table="qwen3_235b_a22b",
            total="235B",
            active="22B",
            source="huggingface.co/Qwen/Qwen3-235B-A22B",
        ),
    }
