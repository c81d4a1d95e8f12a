"""Names of tensors in Megatron checkpoints: layers in the name, or stacked along the first axis.

Megatron stacks layers that are all alike into one tensor (`decoder.layers.mlp.router.weight`,
[layers, ...]); otherwise each has a name of its own (`decoder.layers.3.mlp.router.weight`).
"""

from collections.abc import Iterator

from moe_megatron.checkpoint.links import Link

LAYER = "{layer}"
_PADDED = ("embedding.word_embeddings.", "output_layer.")


def stacked(key: str) -> str:
    """The name of a key that holds all layers."""
    return key.replace(f"{LAYER}.", "")


def of_layer(key: str, layer: int | None) -> str:
    """The name of a key that holds one layer."""
    return key.replace(LAYER, str(layer))


def is_of_vocabulary(key: str) -> bool:
    """Whether Megatron may have padded the rows of this tensor with unused words."""
    return key.startswith(_PADDED)


def names(key: str, link: Link) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names under which a link's matrix may be stored, with its place along the leading axes."""
    expert = () if link.expert is None else (link.expert,)
    if LAYER not in key:
        yield key, expert
        return
    assert link.layer is not None, key
    yield stacked(key), (link.layer, *expert)
    yield of_layer(key, link.layer), expert
