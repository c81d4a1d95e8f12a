"""The routers that there are: a router is one pure function, registered under a name.

    @register_router("nearest")
    def route_nearest(logits_TE, *, top_k, sharpness: float = 1.0):
        weights_TK, indices_TK = (sharpness * logits_TE).softmax(-1).topk(top_k)
        return Routing.of_indices(indices_TK, weights_TK, logits_TE.shape[-1])

From then on `moe.router: {name: nearest, sharpness: 2.0}` trains with it under every layout, and
`MoEModel(router_type="nearest")` computes it. What surrounds a router is not its business: the
gate, jitter, auxiliary losses, capacity, padding, counting and communication are those of the
model.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from moe_megatron.config import MoEConfig, RouterConfig, checks
from moe_megatron.config.conform import conform
from moe_megatron.config.moe import BALANCES_WITHOUT_LOSS
from moe_megatron.errors import ConfigError
from moe_megatron.routing.decision import Routing

CONTEXT = {
    "hidden": "what entered the gate, [T, H]",
    "padding": "bool [T], True for tokens that count nowhere; None where there are none",
    "training": "whether the model trains",
    "expert_bias": "float32 [E], added to the choice and not to the weights; None where there is "
    "none (arXiv:2408.15664)",
}
"""What a router is given beside logits and `top_k`, if its signature asks for it by name."""

RouterFunction = Callable[..., Routing]
Distribution = Callable[[Tensor], Tensor]
"""From logits to the router's distribution over experts, float32 [T, E], rows summing to 1."""


class RouterOptions(Protocol):
    """Options of a router: a frozen dataclass. It may have `check`, for what crosses its fields."""

    __dataclass_fields__: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Router:
    """A registered router."""

    name: str
    function: RouterFunction
    options: type
    """Frozen dataclass of its options, with their defaults."""
    context: frozenset[str]
    """Which of `CONTEXT` it asks for."""
    distribution: Callable[[Any], Distribution]
    """Of its options."""
    fixed_number: bool
    """Whether every token gets exactly `top_k` experts."""
    batch_dependent: bool
    """Whether the experts of a token depend on other tokens of the batch."""

    def configured(self, router: RouterConfig) -> Any:
        """Its options as an instance of `options`.

        Raises:
            ConfigError: An option is unknown or has a wrong value.
        """
        known = [field.name for field in dataclasses.fields(self.options)]
        for option in router.options:
            if option not in known:
                hint = checks.nearest(option, known)
                hint = hint or f" It has {checks.join_words(known, 'and') or 'none'}."
                raise ConfigError(f"the router '{self.name}' has no option '{option}'.{hint}")
        return self.options(**router.options)


@dataclass(frozen=True, kw_only=True, slots=True)
class BoundRouter:
    """A router with its options and number of experts, ready to route."""

    router: Router
    options: Any
    top_k: int
    distribution: Distribution
    """What auxiliary losses and entropy look at."""

    def __call__(self, logits_TE: Tensor, **context: Any) -> Routing:
        """Route tokens.

        Args:
            logits_TE: Output of the gate.
            **context: All of `CONTEXT`; the router gets what it asks for.
        """
        wanted = {name: context[name] for name in self.router.context}
        return self.router.function(logits_TE, top_k=self.top_k, **self._options(), **wanted)

    def asks_for(self, context: str) -> bool:
        """Whether it is given one of `CONTEXT`."""
        return context in self.router.context

    def balancing_map(self, scores_TE: Tensor, routing: Routing) -> Tensor:
        """The choice that the load balancing loss counts, bool [T, E].

        The `top_k` experts with the best scores, as in Megatron: without bias, groups or capacity.
        Of a router that gives tokens different numbers of experts, its own choice.
        """
        if not self.router.fixed_number:
            return routing.assigned_map
        chosen_TK = torch.topk(scores_TE, self.top_k, dim=-1).indices
        return torch.zeros_like(scores_TE, dtype=torch.bool).scatter(1, chosen_TK, True)

    def _options(self) -> dict[str, Any]:
        return {f.name: getattr(self.options, f.name) for f in dataclasses.fields(self.options)}


def softmax(logits_TE: Tensor) -> Tensor:
    """The distribution of a router that says nothing else: the softmax, float32 [T, E]."""
    return torch.softmax(logits_TE, dim=-1, dtype=torch.float32)


_ROUTERS: dict[str, Router] = {}


def register_router(
    name: str,
    *,
    options: type | None = None,
    distribution: Callable[[Any], Distribution] = lambda options: softmax,
    fixed_number: bool = True,
    batch_dependent: bool = False,
) -> Callable[[RouterFunction], RouterFunction]:
    """Register a router; a decorator of a pure function `(logits, *, top_k, ...) -> Routing`.

    The function gets logits [T, E], `top_k`, those of `CONTEXT` that its signature names, and its
    options, as keyword arguments.

    Args:
        name: What `moe.router.name` calls it.
        options: Frozen dataclass of its options; its method `check(moe)`, if it has one, raises
            `ConfigError` where they do not fit the rest of the `MoEConfig`. None: the keyword
            arguments of the function that have defaults.
        distribution: From its options to the function of logits that auxiliary losses and entropy
            look at; the softmax by default.
        fixed_number: Whether every token gets exactly `top_k` experts. Without it, `top_k` is the
            number that the router aims at.
        batch_dependent: Whether the experts of a token depend on other tokens of the batch.

    Raises:
        ConfigError: The name is taken, or the function's signature is not that of a router.
    """

    def register(function: RouterFunction) -> RouterFunction:
        if name in _ROUTERS:
            raise ConfigError(
                f"there is a router '{name}' already ({_ROUTERS[name].function.__module__}); "
                "choose another name."
            )
        parameters = _keywords(name, function)
        kind = _derived_options(name, parameters) if options is None else options
        known = {field.name for field in dataclasses.fields(kind)} | {"top_k"}
        context = parameters.keys() - known
        if strange := sorted(context - CONTEXT.keys()):
            raise ConfigError(
                f"the router '{name}' asks for {checks.join_words(strange)}, which is neither an "
                f"option nor something that routers are given; those are "
                f"{checks.join_words(list(CONTEXT), 'and')}. An option has a default."
            )
        _ROUTERS[name] = Router(
            name=name,
            function=function,
            options=kind,
            context=frozenset(context),
            distribution=distribution,
            fixed_number=fixed_number,
            batch_dependent=batch_dependent,
        )
        return function

    return register


@contextmanager
def registered_router(name: str, function: RouterFunction, **how: Any) -> Iterator[None]:
    """Have a router for as long as the context is open; arguments as for `register_router`."""
    register_router(name, **how)(function)
    try:
        yield
    finally:
        del _ROUTERS[name]


def router_names() -> tuple[str, ...]:
    """Names of all routers, sorted."""
    return tuple(sorted(_ROUTERS))


def find_router(name: str) -> Router:
    """The router of a name.

    Raises:
        ConfigError: There is none.
    """
    if name not in _ROUTERS:
        raise ConfigError(
            f"there is no router '{name}'.{checks.nearest(name, _ROUTERS)} Routers are "
            f"{checks.join_words(router_names(), 'and')}; one of your own is registered with "
            "moe_megatron.routing.register_router before the run starts."
        )
    return _ROUTERS[name]


def resolve(moe: MoEConfig) -> MoEConfig:
    """The same experts, with every option of their router filled in and checked.

    Raises:
        ConfigError: There is no such router, an option is wrong, or the router does not work with
            another field.
    """
    if moe.num_experts is None:
        return moe
    router = find_router(moe.router.name)
    options = router.configured(moe.router)
    if hasattr(options, "check"):
        options.check(moe)
    _check_services(router, moe)
    return dataclasses.replace(
        moe, router=RouterConfig(name=router.name, options=dataclasses.asdict(options))
    )


def bind(moe: MoEConfig) -> BoundRouter:
    """The router of a model, ready to route.

    Raises:
        ConfigError: As `resolve`.
    """
    router = find_router(moe.router.name)
    options = router.configured(resolve(moe).router)
    return BoundRouter(
        router=router,
        options=options,
        top_k=moe.top_k,
        distribution=router.distribution(options),
    )


def _check_services(router: Router, moe: MoEConfig) -> None:
    """Refuse fields of the experts that a router cannot serve."""
    refused = {
        "expert_bias": moe.expert_bias and "expert_bias" not in router.context,
        "load_balancing": router.name != "top_k" and moe.load_balancing in BALANCES_WITHOUT_LOSS,
        "token_dispatcher": not router.fixed_number and moe.token_dispatcher == "flex",
        "pad_to_capacity": not router.fixed_number and moe.pad_to_capacity,
    }
    found = [f"moe.{field} ({getattr(moe, field)})" for field, wrong in refused.items() if wrong]
    if found:
        raise ConfigError(
            f"the router '{router.name}' does not work with {checks.join_words(found, 'and')}; "
            "leave such fields at their defaults, or use 'top_k'."
        )


def _keywords(name: str, function: RouterFunction) -> dict[str, inspect.Parameter]:
    """The keyword arguments of a router."""
    signature = inspect.signature(function, eval_str=True)
    first, rest = None, list(signature.parameters.values())
    if rest:
        first, *rest = rest
    keywords = {p.name: p for p in rest if p.kind is inspect.Parameter.KEYWORD_ONLY}
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY
    takes_logits = first is not None and first.kind in positional
    if not takes_logits or len(keywords) != len(rest) or "top_k" not in keywords:
        raise ConfigError(
            f"the router '{name}' must take the logits and then keywords alone, top_k among them, "
            f"as in (logits_TE, *, top_k), not {signature}."
        )
    return keywords


def _derived_options(name: str, parameters: Mapping[str, inspect.Parameter]) -> type:
    """A frozen dataclass of the arguments that have defaults."""
    fields = []
    for parameter in parameters.values():
        if parameter.default is inspect.Parameter.empty or parameter.name in {*CONTEXT, "top_k"}:
            continue
        kind = parameter.annotation
        kind = type(parameter.default) if kind is inspect.Parameter.empty else kind
        fields.append((parameter.name, kind, dataclasses.field(default=parameter.default)))
    return dataclasses.make_dataclass(
        f"{name.title().replace('_', '')}Options",
        fields,
        namespace={"__post_init__": conform, "SECTION": "moe.router"},
        frozen=True,
        kw_only=True,
        slots=True,
    )
