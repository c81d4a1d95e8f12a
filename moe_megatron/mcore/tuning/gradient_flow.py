"""Lets gradients flow down to the lowest layer that is trained, on all ranks alike.

If all below a layer is frozen, what goes into it needs no gradient. Then two things go wrong, and
nothing says so. A rank whose own experts are frozen has no backward pass through the exchange of
tokens, and the rank whose experts are trained waits for it for ever. And a layer that is recomputed
gets no gradients for its own parameters, nor does its router count in the second pass. So what goes
into the lowest layer needs a gradient here, whatever a rank holds of it; with recomputation, what
goes into the first. It does not know why a layer is trained.
"""

from collections.abc import Mapping
from typing import Any

import torch

from moe_megatron.mcore.tuning.places import layers_of


def let_gradients_reach(chunks: list[Any], layer: int | None) -> None:
    """Make the input of a layer need a gradient in every training pass.

    Args:
        chunks: Megatron's model chunks of this rank, not wrapped.
        layer: Number of the lowest layer in the whole model with trained parameters, the same on
            all ranks; None if there is none.
    """
    for chunk in chunks:
        if chunk.config.recompute_granularity is not None:
            entered = chunk.decoder
        elif layer is not None:
            entered = layers_of(chunk).get(min(layer, chunk.config.num_layers))
        else:
            entered = None
        if entered is not None:
            entered.register_forward_pre_hook(_with_gradient, with_kwargs=True)


def _with_gradient(
    module: torch.nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a layer, with hidden states that need a gradient."""
    if arguments:
        return (_needing(arguments[0]), *arguments[1:]), dict(named)
    return arguments, {**named, "hidden_states": _needing(named.get("hidden_states"))}


def _needing(hidden: Any) -> Any:
    plain = isinstance(hidden, torch.Tensor) and not hidden.requires_grad
    return hidden.detach().requires_grad_() if plain and torch.is_grad_enabled() else hidden
