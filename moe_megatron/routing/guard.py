"""Watches a router of the user's own: what it raises, and what it returns, is told with its place.

A mistake in it would otherwise be an error of a matrix product three layers on, or a loss that is
NaN. It costs one look at the result, which a GPU must have computed by then; routers of this
package are not watched. Shapes: T tokens, E experts, K slots of a token.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from moe_megatron.config.own_code import OwnCode
from moe_megatron.errors import ConfigError, MoEError
from moe_megatron.routing.decision import Routing

_HOW = "Routing.of_indices(indices_TK, weights_TK, num_experts) or Routing.of_map(probs_TE, map_TE)"


def guarded(
    function: Callable[..., Routing], code: OwnCode, *, own_gate: bool
) -> Callable[..., Routing]:
    """A router's function that raises `ConfigError` for what is wrong with it.

    Args:
        function: The router.
        code: Where it is from.
        own_gate: Whether its logits are from a gate of its own.
    """

    def route(logits_TE: Tensor, **arguments: Any) -> Routing:
        with telling(code):
            routing = function(logits_TE, **arguments)
        if found := problem(routing, logits_TE, own_gate=own_gate):
            raise ConfigError(f"the router {code.place} {found}.")
        return routing

    return route


@contextmanager
def telling(code: OwnCode | None, what: str = "router") -> Iterator[None]:
    """Say of errors within the block where in the user's file they are from.

    Args:
        code: The user's; None: errors are left as they are.
        what: What the code is, for messages.

    Raises:
        ConfigError: The code raises.
    """
    try:
        yield
    except (MoEError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if code is None:
            raise
        raise ConfigError(f"the {what} {code.place} raises {code.told(error)}.") from error


def problem(routing: object, logits_TE: Tensor, *, own_gate: bool = False) -> str | None:
    """What is wrong with a router's result, as the end of a sentence; None: nothing.

    Args:
        routing: What it returned.
        logits_TE: What it was given.
        own_gate: Whether these are from a gate of its own, which may have rows for experts that
            compute nothing, beside those of a Routing.
    """
    if not isinstance(routing, Routing):
        return f"returns {type(routing).__name__}, not a Routing; end it with {_HOW}"
    return _wrong_shape(routing, logits_TE, own_gate) or _wrong_values(routing, logits_TE)


def _wrong_shape(routing: Routing, logits_TE: Tensor, own_gate: bool) -> str | None:
    tokens, experts = logits_TE.shape
    slots = routing.indices.shape
    if len(slots) != 2 or slots[0] != tokens:
        return f"returns indices of the shape {list(slots)} for {tokens} tokens, not [{tokens}, K]"
    for name in ("weights", "assigned", "kept"):
        if (shape := getattr(routing, name).shape) != slots:
            return f"returns {name} of the shape {list(shape)}, not that of indices, {list(slots)}"
    if routing.indices.dtype != torch.int64:
        return f"returns indices of {routing.indices.dtype}, not torch.int64"
    if not routing.weights.is_floating_point():
        return f"returns weights of {routing.weights.dtype}, not floating point"
    if routing.num_experts > experts or (routing.num_experts < experts and not own_gate):
        return f"returns a Routing among {routing.num_experts} experts, where there are {experts}"
    return None


def _wrong_values(routing: Routing, logits_TE: Tensor) -> str | None:
    """One look at the values; logits that are not finite themselves are not the router's fault."""
    outside_TK = (routing.indices < 0) | (routing.indices >= routing.num_experts)
    strange_TK = ~routing.weights.isfinite()
    bad = (outside_TK | strange_TK).any()
    if routing.loss is not None:
        bad = bad | ~routing.loss.isfinite().all()
    if not bool(bad) or not bool(logits_TE.isfinite().all()):
        return None
    if bool(outside_TK.any()):
        return (
            f"names expert {int(routing.indices[outside_TK][0])}, where there are "
            f"{routing.num_experts}, counted from 0"
        )
    given = "for logits that are all finite"
    if routing.loss is not None and not bool(strange_TK.any()):
        return f"returns a loss of {float(routing.loss.detach())} {given}"
    value, rows = float(routing.weights[strange_TK][0].detach()), strange_TK.any(dim=1)
    return f"returns weights of {value} for {int(rows.sum())} of {len(rows)} tokens, {given}"
