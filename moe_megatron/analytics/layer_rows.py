"""Finds a layer among those with a router, by its number in the whole model."""

from collections.abc import Sequence

from moe_megatron.errors import ConfigError


def row_of(layer: int, layers: Sequence[int]) -> int:
    """The place of a layer's row in arrays over the layers with a router.

    Args:
        layer: Its global number.
        layers: The numbers of all that have one.

    Raises:
        ConfigError: The layer has no router.
    """
    if layer not in layers:
        known = ", ".join(map(str, layers))
        raise ConfigError(f"layer {layer} has no router; the MoE layers are {known}")
    return layers.index(layer)
