"""Watches a router that is not of this package: what it raises, and what it returns, is told.

A mistake in it would otherwise be an error of a matrix product three layers on, or a loss that is
NaN. It costs one look at the result, which a GPU must have computed by then; routers of this
package are not watched. Shapes: T tokens, E experts, K slots of a token.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from moe_megatron.config.own_code import OwnCode, where_left
from moe_megatron.errors import ConfigError, MoEError
from moe_megatron.routing.decision import Routing

_HOW = "Routing.of_indices(indices_TK, weights_TK, num_experts) or Routing.of_map(probs_TE, map_TE)"


@contextmanager
def telling(code: OwnCode | None, what: str = "router") -> Iterator[None]:
    """Say of errors within the block where in the user's file they are from.

    Leaving the process (`SystemExit`) is one; a person who stops it (`KeyboardInterrupt`) is not.

    Args:
        code: The user's file; None: errors are left as they are, and only leaving is told.
        what: What the code is, for messages.

    Raises:
        ConfigError: The code raises.
    """
    try:
        yield
    except (MoEError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:
        if code is None and isinstance(error, SystemExit):
            raise ConfigError(
                f"the {what} ends the process: {where_left(error)}. Let it raise an error that "
                "says what is wrong."
            ) from error
        if code is None:
            raise
        raise ConfigError(f"the {what} {code.place} raises {code.told(error)}.") from error


def problem(
    routing: object,
    logits_TE: Tensor,
    *,
    own_gate: bool = False,
    fixed_number: int | None = None,
    padding_T: Tensor | None = None,
) -> str | None:
    """What is wrong with a router's result, as the end of a sentence; None: nothing.

    Args:
        routing: What it returned.
        logits_TE: What it was given.
        own_gate: Whether these are from a gate of its own, which may have rows for experts that
            compute nothing, beside those of a Routing.
        fixed_number: Experts of every token; None: tokens have different numbers of them.
        padding_T: bool, True for tokens that may have any number; None: there are none.
    """
    if not isinstance(routing, Routing):
        return f"returns {type(routing).__name__}, not a Routing; end it with {_HOW}"
    found = _wrong_shape(routing, logits_TE, own_gate)
    return found or _wrong_values(routing, logits_TE, fixed_number, padding_T)


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
    if routing.loss is not None and routing.loss.numel() != 1:
        return f"returns a loss of the shape {list(routing.loss.shape)}, not one number"
    if routing.copied is not None and routing.copied.shape != (tokens,):
        return (
            f"returns weights of copies of the shape {list(routing.copied.shape)}, not [{tokens}]"
        )
    return None


def _wrong_values(
    routing: Routing, logits_TE: Tensor, fixed_number: int | None, padding_T: Tensor | None
) -> str | None:
    """One look at the values; logits that are not finite themselves are not the router's fault."""
    outside_TK = (routing.indices < 0) | (routing.indices >= routing.num_experts)
    strange_TK = ~routing.weights.isfinite()
    twice_T = _has_an_expert_twice(routing)
    free_TK = ~routing.assigned & (routing.weights != 0)
    other_T = torch.zeros_like(twice_T)
    counts_T = routing.kept.sum(dim=1)
    if fixed_number is not None:
        other_T = counts_T != fixed_number
        other_T = other_T if padding_T is None else other_T & ~padding_T
    bad = (outside_TK | strange_TK | free_TK).any() | (twice_T | other_T).any()
    for beside in (routing.loss, routing.copied):
        if beside is not None:
            bad = bad | ~beside.isfinite().all()
    if not bool(bad) or not bool(logits_TE.isfinite().all()):
        return None
    if bool(outside_TK.any()):
        return (
            f"names expert {int(routing.indices[outside_TK][0])}, where there are "
            f"{routing.num_experts}, counted from 0"
        )
    given = "for logits that are all finite"
    if bool(strange_TK.any()):
        value, rows = float(routing.weights[strange_TK][0].detach()), strange_TK.any(dim=1)
        return f"returns weights of {value} for {int(rows.sum())} of {len(rows)} tokens, {given}"
    if bool(twice_T.any()):
        return (
            f"names an expert twice for {int(twice_T.sum())} of {len(twice_T)} tokens; a token "
            "goes to an expert once, with one weight"
        )
    if bool(free_TK.any()):
        return "returns a weight in a slot that is not assigned; it must be 0 there"
    if bool(other_T.any()):
        return (
            f"gives a token {int(counts_T[other_T][0])} experts, not top_k ({fixed_number}); "
            "return as many, or declare that numbers differ, as in "
            '@register_router("my_router", fixed_number=False)'
        )
    if routing.loss is not None and not bool(routing.loss.isfinite().all()):
        return f"returns a loss of {float(routing.loss.detach())} {given}"
    return f"returns weights of copies that are not finite {given}"


def _has_an_expert_twice(routing: Routing) -> Tensor:
    """Whether two slots of a token that are assigned name one expert, bool [T]."""
    slots = routing.indices.shape[1]
    unlike_K = -1 - torch.arange(slots, device=routing.indices.device)  # no two of them are equal
    sorted_TK = torch.where(routing.assigned, routing.indices, unlike_K).sort(dim=1).values
    return (sorted_TK[:, 1:] == sorted_TK[:, :-1]).any(dim=1)
