"""An output projection tied to the embedding, on a stage with layers for multi-token prediction.

Such a stage has a copy of the embedding, which is the output projection, too. Megatron gives the
projection weights of its own beside it, which nothing uses, and then refuses to save them.
"""

from typing import Any


def drop_unused_head(chunks: list[Any]) -> list[Any]:
    """Take away weights of an output projection for which the embedding stands in.

    Args:
        chunks: Megatron's model chunks of this rank, before DDP wraps them.
    """
    for chunk in chunks:
        tied = chunk.share_embeddings_and_output_weights
        if tied and chunk.mtp_process and chunk.post_process:
            chunk.output_layer.weight = None
    return chunks
