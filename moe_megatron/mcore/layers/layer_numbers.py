"""The number of a layer in the whole model.

Megatron numbers layers for multi-token prediction from 1 again, beside those of the decoder. Here
they are numbered on, after the last layer of the decoder.
"""

from typing import Any


def number_of(module: Any) -> int:
    """The number, from 1, of the layer of a router or of an MoE layer.

    Args:
        module: Megatron's `Router` or `MoELayer`.
    """
    before = module.config.num_layers if module.is_mtp_layer else 0
    return int(before + module.layer_number)
