"""Conformance of routers, for their authors: does a router do what it declares?

    from moe_megatron.testing import check_router

    check_router("my_router")            # raises RouterError with the property that failed

    check_router("my_router", engines=True)      # also trains it, under every layout

Without engines it routes random tokens as an engine does; `engines.py` trains. Shapes: T tokens,
E experts, H hidden size.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from moe_megatron.config import MoEConfig, RouterConfig
from moe_megatron.errors import ConfigError
from moe_megatron.routing import (
    BoundRouter,
    Routing,
    bind,
    find_router,
    own_router,
    registered_router,
    router_names,
)
from moe_megatron.routing.description import Router
from moe_megatron.testing.distributed import RankError
from moe_megatron.testing.engines import problems, train
from moe_megatron.testing.ways import ENGINES, Case, ways_for

TOKENS, EXPERTS, HIDDEN = 24, 8, 16


class RouterError(ConfigError):
    """A router does not have a property that it must have, or has declared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One router, with tokens, and what an engine gives it beside them."""

    route: BoundRouter
    hidden_TH: Tensor
    token_ids: Tensor
    tensors: dict[str, Tensor]
    """The parameters of its gate."""
    state: dict[str, Tensor] | None

    def logits(self, *, training: bool, seed: int = 0, rows: slice = slice(None)) -> Tensor:
        """What comes out of its gate, [T, E]."""
        torch.manual_seed(seed)
        hidden_TH = self.hidden_TH[rows]
        if self.route.router.gate is None:
            return hidden_TH @ self.tensors["weight"].T
        return self.route.gate_logits(hidden_TH, training=training, **self.tensors)

    def routed(
        self,
        *,
        training: bool,
        seed: int = 0,
        padding: Tensor | None = None,
        rows: slice = slice(None),
        logits_TE: Tensor | None = None,
    ) -> Routing:
        """What it chooses for the tokens, or some of them."""
        if logits_TE is None:
            logits_TE = self.logits(training=training, seed=seed, rows=rows)
        torch.manual_seed(seed)
        return self.route(
            logits_TE,
            hidden=self.hidden_TH[rows],
            padding=padding,
            training=training,
            expert_bias=None,
            state=self.state,
            token_ids=self.token_ids[rows],
            domain_ids=self.token_ids[rows] % 3 - 1,
            task_ids=self.token_ids[rows] % 3 - 1,
        )


def trial(name: str, top_k: int = 2, dtype: torch.dtype = torch.float32, **options: Any) -> Trial:
    """Random tokens for a router.

    Args:
        name: Of the router, or a function in a file.
        top_k: Experts for each token.
        dtype: Of logits.
        **options: Of the router.
    """
    router = own_router(RouterConfig(name=name, options=options))
    # What is wrong with a result is for the checks to say.
    route = replace(bind(MoEConfig(num_experts=EXPERTS, top_k=top_k, router=router)), watched=False)
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    tensors = {
        key: torch.full(it.shape, it.first, dtype=dtype)
        if it.first is not None
        else drawn(*it.shape)
        for key, it in route.gate_tensors(EXPERTS, HIDDEN).items()
    }
    state = route.router.state
    return Trial(
        route=route,
        hidden_TH=drawn(TOKENS, HIDDEN) / 2,
        token_ids=torch.randint(0, 100, (TOKENS,), generator=generator),
        tensors={key: it.requires_grad_() for key, it in tensors.items()},
        state=None if state is None else {n: v.clone() for n, v in state.first(EXPERTS).items()},
    )


def check_router(
    router: str | Callable[..., Routing],
    top_k: int = 2,
    *,
    engines: bool | Sequence[str] = False,
    **options: Any,
) -> None:
    """Check a router.

    Without engines, in a second: shapes, experts named twice, finite weights, the same again with
    the same seed, gradients, padding, causality as declared, that neither the order nor the number
    of tokens matters, and its state; in float32 and bfloat16.

    In the engines, in about a quarter of a minute for all of them: a tiny model is trained in
    Megatron for three steps, and losses, parameters and counts must be those of one process with
    two-way expert ("ep2"), tensor with sequence ("tp2"), pipeline ("pp2") and context parallelism
    ("cp2"), "recompute" and "accumulation" (two micro-batches for one); "capacity" must be
    respected. Counts must be tokens x top_k, or what the router returned, to the last token.
    `MoEModel` must compute Megatron's logits from the weights, and route no padding.

    What a router declares it is exempt from: one that looks at its batch in training, or has a loss
    of its batch, from "accumulation", as other tokens are in a micro-batch then. One that is random
    must draw the same numbers for the same tokens, but under "accumulation" and "cp2", where
    micro-batches are others or their tokens are in another order: there the first loss must be
    equal to 2 %.

    Args:
        router: Its name, the function, which need not be registered, or a function in a file:
            "my_router.py:my_router".
        top_k: Experts for each token.
        engines: True for all of them, or the names of some; "tp2-ep2", of four processes, is
            checked only if it is named. Processes are started, which import the router's file: call
            it below `if __name__ == "__main__"` in a script.
        **options: Of the router.

    Raises:
        ConfigError: There is no such router, or an option is wrong; or other processes cannot know
            the router.
        RouterError: A property does not hold; the message names it.
    """
    with _named(router) as name:
        _check(name, top_k, engines, options)


def _check(
    name: str, top_k: int, engines: bool | Sequence[str], options: Mapping[str, Any]
) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        given = trial(name, top_k, dtype, **options)
        for check in CHECKS:
            for problem in check(given):
                raise _error(name, str(dtype).removeprefix("torch."), problem)
    if engines is False:
        return
    asked = ENGINES if engines is True else tuple(engines)
    case = Case(router=_found(name), top_k=top_k, options=dict(options))
    try:
        found = train({name: case}, ways_for(asked))[name]
    except RankError as error:
        raise RouterError(
            f"the router '{name}' cannot be trained in the engines: {error}"
        ) from error
    for problem in problems(case, found):
        raise _error(name, "the engines", problem)


def _error(name: str, where: str, problem: str) -> RouterError:
    router = _found(name)
    return RouterError(f"the router '{router.name}' ({router.place}) fails in {where}: {problem}.")


def _found(name: str) -> Router:
    return find_router(own_router(name))


@contextmanager
def _named(router: str | Callable[..., Routing]) -> Iterator[str]:
    """The name of a router; a plain function has its own within the block."""
    if isinstance(router, str):
        yield router
        return
    for name in router_names():
        if find_router(name).function is router:
            yield name
            return
    name = getattr(router, "__name__", type(router).__name__)
    with registered_router(name, router):
        yield name


def _shapes(it: Trial) -> Iterator[str]:
    for training in (True, False):
        logits_TE = it.logits(training=training)
        routing = it.routed(training=training, logits_TE=logits_TE)
        if found := it.route.problem(routing, logits_TE):
            yield f"it {found}"
            return
        if routing.num_experts != EXPERTS:
            yield f"its Routing is among {routing.num_experts} experts, not {EXPERTS}"
        if routing.weights.dtype != logits_TE.dtype:
            yield f"its weights are {routing.weights.dtype}, not those of the logits"


def _repeats(it: Trial) -> Iterator[str]:
    random = it.route.router.random
    for training in (True, False):
        first, same = (it.routed(training=training).probs for _ in range(2))
        if not torch.equal(first, same):
            yield "with the same seed it chooses otherwise a second time"
        other = it.routed(training=training, seed=7).probs
        if not torch.equal(first, other) and not (random and training):
            where = "in training; declare random=True" if training else "in evaluation"
            yield f"it draws random numbers {where}"


def _gradient(it: Trial) -> Iterator[str]:
    for training in (True, False):
        routing = it.routed(training=training)
        loss = (routing.probs.float() * torch.arange(1.0, EXPERTS + 1)).sum()
        loss = loss if routing.loss is None else loss + routing.loss
        if not loss.requires_grad:
            yield "its weights do not depend on the gate: there is no gradient"
            return
        found = torch.autograd.grad(loss, list(it.tensors.values()), allow_unused=True)
        unused = [key for key, grad in zip(it.tensors, found, strict=True) if grad is None]
        if unused and training:
            yield f"the parameter '{unused[0]}' of its gate gets no gradient"
        if any(grad is not None and not grad.isfinite().all() for grad in found):
            yield "a gradient is not finite"


def _padding(it: Trial) -> Iterator[str]:
    """Padding must not change what happens to tokens, nor count."""
    if not it.route.uses("padding"):
        return
    padding = torch.zeros(TOKENS, dtype=torch.bool)
    padding[-8:] = True
    for training in (True, False):
        logits_TE = it.logits(training=training).detach()
        wild_TE = logits_TE.masked_fill(padding.unsqueeze(-1), 50.0)
        one = it.routed(training=training, padding=padding, logits_TE=logits_TE)
        two = it.routed(training=training, padding=padding, logits_TE=wild_TE)
        same = torch.equal(one.probs[:-8], two.probs[:-8])
        if same and not (
            it.route.router.looks_at_batch(training=training)
            or (training and it.route.router.random)
        ):
            without = it.routed(training=training, logits_TE=logits_TE)
            same = torch.equal(one.probs[:-8], without.probs[:-8])
        if not same:
            yield "padding changes the experts of tokens"
        if any(not torch.equal(one.observed[key], two.observed[key]) for key in one.observed):
            yield "padding enters the sums of its state"
        if one.loss is not None and two.loss is not None and not torch.equal(one.loss, two.loss):
            yield "padding enters its loss"


def _causality(it: Trial) -> Iterator[str]:
    """No token's experts may depend on a later token, but where that is declared."""
    for training in (True, False):
        allowed = it.route.router.looks_at_batch(training=training)
        logits_TE = it.logits(training=training).detach()
        other_TE = logits_TE.clone()
        other_TE[TOKENS // 2 :] = -2 * other_TE[TOKENS // 2 :].flip(0)
        early = slice(0, TOKENS // 2)
        one, two = (
            it.routed(training=training, logits_TE=them).probs[early]
            for them in (logits_TE, other_TE)
        )
        if not torch.equal(one, two) and not allowed:
            where = "training" if training else "evaluation"
            yield f"in {where} a token's experts depend on later tokens, which it does not declare"


def _tokens_alone(it: Trial) -> Iterator[str]:
    """Neither the order of tokens nor their number may matter, but where that is declared."""
    router = it.route.router
    for training in (True, False):
        if router.looks_at_batch(training=training) or (router.random and training):
            continue
        where = "training" if training else "evaluation"
        whole = it.routed(training=training).probs
        order = torch.arange(TOKENS - 1, -1, -1)
        logits_TE = it.logits(training=training)[order]
        turned = replace(it, hidden_TH=it.hidden_TH[order], token_ids=it.token_ids[order])
        if not torch.equal(
            turned.routed(training=training, logits_TE=logits_TE).probs[order], whole
        ):
            yield f"in {where} the order of tokens changes their experts"
        half = slice(0, TOKENS // 2)
        few = it.routed(training=training, rows=half, logits_TE=it.logits(training=training)[half])
        if not torch.equal(few.probs, whole[half]):
            yield f"in {where} the number of tokens changes their experts"


def _state(it: Trial) -> Iterator[str]:
    state = it.route.router.state
    if state is None or it.state is None:
        return
    before = {key: value.clone() for key, value in it.state.items()}
    observed = it.routed(training=True).observed
    if any(not torch.equal(before[key], value) for key, value in it.state.items()):
        yield "it changes its state while it routes; only `updated` may, after the step"
    expected = {key: tuple(value.shape) for key, value in state.sums(EXPERTS).items()}
    found = {key: tuple(value.shape) for key, value in observed.items()}
    if found != expected:
        yield f"it observes {found}, but its state sums up {expected}"
        return
    after = it.route.next_state(it.state, {key: it_.double() for key, it_ in observed.items()})
    shapes = {key: value.shape for key, value in it.state.items()}
    if {key: value.shape for key, value in after.items()} != shapes:
        yield "a step changes the shapes of its state"
    if any(not value.isfinite().all() for value in after.values()):
        yield "its state is not finite after a step"


CHECKS: tuple[Callable[[Trial], Iterator[str]], ...] = (
    _shapes,
    _repeats,
    _gradient,
    _padding,
    _causality,
    _tokens_alone,
    _state,
)
"""What is checked, each of which yields sentences about what is wrong."""
