"""Layers for multi-token prediction, built as the decoder's layers are.

Megatron builds them from its own layer spec, whatever the decoder is built from. Here they get the
measured router and the local layers, too. Their routers count into rows of their own, which come
after those of the decoder: the layers are numbered on.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

from megatron.training.models import gpt

from moe_megatron.config import RunConfig
from moe_megatron.mcore.layers.specs import adapt_layer, replace_norms
from moe_megatron.mcore.replaced import replaced


@contextlib.contextmanager
def our_prediction_layers(config: RunConfig) -> Iterator[None]:
    """Have Megatron build prediction layers from ours for as long as the context is open.

    Args:
        config: The run.
    """
    original = gpt.mtp_block_spec

    def mtp_block_spec(*args: Any, **kwargs: Any) -> Any:
        block = original(*args, **kwargs)
        if block is None:  # not on this stage
            return None
        layers = [_adapted(layer, config) for layer in block.layer_specs]
        return dataclasses.replace(block, layer_specs=layers)

    with replaced(gpt, "mtp_block_spec", mtp_block_spec):
        yield


def _adapted(layer: Any, config: RunConfig) -> Any:
    submodules = replace_norms(layer.submodules)
    inner = submodules.mtp_model_layer
    inner = dataclasses.replace(inner, submodules=adapt_layer(inner.submodules, config))
    return dataclasses.replace(
        layer, submodules=dataclasses.replace(submodules, mtp_model_layer=inner)
    )
