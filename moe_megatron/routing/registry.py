"""The registry of routers. A router is one pure function, registered under a name.

    @register_router("nearest")
    def route_nearest(logits_TE, *, top_k, sharpness: float = 1.0):
        weights_TK, indices_TK = (sharpness * logits_TE).softmax(-1).topk(top_k)
        return Routing.of_indices(indices_TK, weights_TK, logits_TE.shape[-1])

From then on `moe.router: {name: nearest, sharpness: 2.0}` trains with it under every parallel
layout, and `MoEModel(router_type="nearest")` uses it. A router only chooses experts: the model
supplies the gate, jitter, auxiliary losses, capacity, padding, counting and communication.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from moe_megatron.config import MoEConfig, RouterConfig, checks
from moe_megatron.config.moe import BALANCES_WITHOUT_LOSS
from moe_megatron.config.own_code import OwnCode, is_own_code, names_code
from moe_megatron.config.own_shelf import OwnShelf
from moe_megatron.config.signature import configured, options_class, signature_of
from moe_megatron.errors import ConfigError
from moe_megatron.routing.decision import Routing
from moe_megatron.routing.gate import Gate, Parameter
from moe_megatron.routing.guard import problem, telling
from moe_megatron.routing.state import RouterState, State

CONTEXT = {
    "hidden": "input of the gate, [T, H]",
    "padding": "bool [T], True for padding tokens, which count nowhere; None without padding",
    "training": "whether the model trains",
    "expert_bias": "float32 [E], added to the scores for the choice of experts but not for the "
    "weights; None without it (arXiv:2408.15664)",
    "state": "what the router remembers, float32 tensors by name; needs `state=`",
    "token_ids": "int64 [T], the ids of the tokens",
    "domain_ids": "int64 [T], the number of the source of the data that a token is from; -1 where "
    "that is not known",
}
"""Arguments that a router gets in addition to logits and `top_k` if its signature names them."""

BatchDependence = bool | Literal["training"]
"""Whether the experts of a token depend on other tokens of the batch; "training": there alone."""

RouterFunction = Callable[..., Routing]
Distribution = Callable[[Tensor], Tensor]
"""From logits to the router's distribution over experts, float32 [T, E], rows summing to 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Router:
    """A registered router."""

    name: str
    function: RouterFunction
    options: type
    """Frozen dataclass of its options, with their defaults."""
    context: frozenset[str]
    """The arguments of `CONTEXT` that its signature names."""
    options_used: frozenset[str]
    """The options that the function itself takes; others are the gate's."""
    distribution: Callable[[Any], Distribution] = lambda options: softmax
    """From its options to its distribution."""
    fixed_number: bool = True
    """Whether every token gets exactly `top_k` experts."""
    batch_dependent: BatchDependence = False
    """Whether the experts of a token depend on other tokens of the batch."""
    loss_of_batch: bool = False
    """Whether its loss is one of the batch, and not a mean over tokens."""
    random: bool = False
    """Whether it draws random numbers in training."""
    gate: Gate | None = None
    """Where the logits come from; None: from a matrix, as everywhere."""
    state: RouterState | None = None
    """What it remembers from step to step; None: nothing."""
    code: OwnCode | None = None
    """The file of the user's that it is from; None: it was registered where it was imported."""

    @property
    def place(self) -> str:
        """Where it was written, for a message."""
        return self.function.__module__ if self.code is None else self.code.place

    @property
    def is_of_users(self) -> bool:
        """Whether somebody else has written it, so that what it returns is looked at."""
        return self.code is not None or self.function.__module__.partition(".")[0] != _PACKAGE

    def looks_at_batch(self, *, training: bool) -> bool:
        """Whether the experts of a token depend on other tokens of the batch now."""
        return self.batch_dependent is True or (self.batch_dependent == "training" and training)

    def configured(self, router: RouterConfig) -> Any:
        """The options of a `RouterConfig` as an instance of `options`.

        Raises:
            ConfigError: An option is unknown or has a wrong value.
        """
        return configured(self.options, router.options, owner=f"the router '{self.name}'")


@dataclass(frozen=True, kw_only=True, slots=True)
class BoundRouter:
    """A router with its options and number of experts, ready to route."""

    router: Router
    options: Any
    top_k: int
    distribution: Distribution
    """Gives the scores that auxiliary losses and entropy use."""
    watched: bool = True
    """Whether what a router returns is looked at, if it is not of this package."""

    def __call__(self, logits_TE: Tensor, **context: Any) -> Routing:
        """Route tokens.

        Args:
            logits_TE: Output of the gate.
            **context: All of `CONTEXT`; the router gets those that its signature names.

        Raises:
            ConfigError: A router that is not of this package returns something else than a routing,
                or one from a file raises.
        """
        arguments = {name: context[name] for name in self.router.context}
        own = {name: it for name, it in self._options().items() if name in self.router.options_used}
        with telling(self.router.code):
            routing = self.router.function(logits_TE, top_k=self.top_k, **own, **arguments)
        watched = self.watched and self.router.is_of_users
        if watched and (found := self.problem(routing, logits_TE, arguments.get("padding"))):
            raise ConfigError(f"the router {self.place} {found}.")
        return routing

    def problem(
        self, routing: object, logits_TE: Tensor, padding_T: Tensor | None = None
    ) -> str | None:
        """What is wrong with a result, as the end of a sentence; None: nothing.

        Args:
            routing: What the router returned.
            logits_TE: What it was given.
            padding_T: bool, True for tokens that may have any number of experts.
        """
        return problem(
            routing,
            logits_TE,
            own_gate=self.router.gate is not None,
            fixed_number=self.top_k if self.router.fixed_number else None,
            padding_T=padding_T,
        )

    def gate_tensors(self, num_experts: int, hidden_size: int) -> dict[str, Parameter]:
        """The parameters of its gate by name, `weight` first.

        Raises:
            ConfigError: A gate of its own declares none that is called `weight`.
        """
        if self.router.gate is None:
            return {"weight": Parameter((num_experts, hidden_size))}
        with telling(self.router.code):
            return self.router.gate.tensors(num_experts, hidden_size, self._options())

    def gate_logits(self, hidden_TH: Tensor, *, training: bool, **tensors: Tensor) -> Tensor:
        """The logits of a gate of its own, [T, E].

        Args:
            hidden_TH: What enters the gate.
            training: Whether the model trains.
            **tensors: The parameters of the gate.
        """
        assert self.router.gate is not None
        with telling(self.router.code):
            return self.router.gate.logits(
                hidden_TH, **tensors, **self._options(), training=training
            )

    def first_state(self, num_experts: int) -> State | None:
        """What it remembers before the first step; None: nothing."""
        state = self.router.state
        with telling(self.router.code):
            return None if state is None else state.first(num_experts)

    def zero_sums(self, num_experts: int) -> State:
        """What a step adds up, before its first token."""
        assert self.router.state is not None
        with telling(self.router.code):
            return self.router.state.sums(num_experts)

    def next_state(self, state: State, sums: State) -> State:
        """What it remembers after a step, in the same shapes.

        Args:
            state: What it remembered during the step.
            sums: What the tokens of the global batch added up to.
        """
        assert self.router.state is not None
        with telling(self.router.code):
            return self.router.state.updated(state, sums, top_k=self.top_k, **self._options())

    def uses(self, context: str) -> bool:
        """Whether the router's signature names this argument of `CONTEXT`."""
        return context in self.router.context

    def balancing_map(self, scores_TE: Tensor, routing: Routing) -> Tensor:
        """The choice of experts that the load balancing loss counts, bool [T, E].

        As in Megatron these are the `top_k` experts with the best scores, regardless of bias,
        groups and capacity. For a router without a fixed number of experts it is its own choice.
        """
        if not self.router.fixed_number:
            return routing.assigned_map
        chosen_TK = torch.topk(scores_TE, self.top_k, dim=-1).indices
        return torch.zeros_like(scores_TE, dtype=torch.bool).scatter(1, chosen_TK, True)

    @property
    def place(self) -> str:
        """What a message calls it: its name, and where it was written."""
        router = self.router
        return router.place if router.code else f"'{router.name}' ({router.place})"

    def _options(self) -> dict[str, Any]:
        return {f.name: getattr(self.options, f.name) for f in dataclasses.fields(self.options)}


def softmax(logits_TE: Tensor) -> Tensor:
    """The default distribution of a router: the softmax of the logits, float32 [T, E]."""
    return torch.softmax(logits_TE, dim=-1, dtype=torch.float32)


_ROUTERS: dict[str, Router] = {}
OWN_ROUTERS: OwnShelf[RouterConfig, Router] = OwnShelf(RouterConfig)
"""Routers of files that were given in this process."""
DECLARED: list[Router] = []
"""Routers that such files have decorated, with what they declare, oldest first."""

_PACKAGE = __name__.partition(".")[0]
_RESERVED = ("name", "sha256", "replaces")
"""What stands beside the options in a configuration."""


def register_router(  # noqa: PLR0913  # what a router may declare, by name
    name: str,
    *,
    options: type | None = None,
    distribution: Callable[[Any], Distribution] = lambda options: softmax,
    fixed_number: bool = True,
    batch_dependent: BatchDependence = False,
    random: bool = False,
    loss_of_batch: bool = False,
    gate: Gate | None = None,
    state: RouterState | None = None,
) -> Callable[[RouterFunction], RouterFunction]:
    """Register a router: decorates a pure function `(logits, *, top_k, ...) -> Routing`.

    The function gets logits [T, E] and, as keyword arguments, `top_k`, its options, and those of
    `CONTEXT` that its signature names.

    Args:
        name: The router's name, for `moe.router.name`.
        options: Frozen dataclass of its options; a method `check(moe)`, if it has one, raises
            `ConfigError` if they do not fit the rest of the `MoEConfig`. None: the options are the
            keyword arguments of the function that have defaults.
        distribution: From its options to the function of the logits that auxiliary losses and
            entropy use; the softmax by default.
        fixed_number: Whether every token gets exactly `top_k` experts. If not, `top_k` is the
            target number.
        batch_dependent: Whether the experts of a token depend on other tokens of the batch: never,
            in training alone ("training"), or always. A language model that depends on later
            tokens when it is used cannot generate.
        random: Whether it draws random numbers in training, from torch's generator.
        loss_of_batch: Whether its loss is one of the batch, such as one with loads of experts, and
            not a mean over tokens. Ranks that share a batch then show each other their tokens.
        gate: Where the logits come from, if not from a matrix.
        state: What it remembers from step to step, which it gets as `state`.

    Raises:
        ConfigError: The name is taken, or the function does not have the signature of a router.
    """

    def register(function: RouterFunction) -> RouterFunction:
        own = is_own_code(function)
        if name in _ROUTERS and not own:
            raise ConfigError(
                f"there is already a router '{name}' ({_ROUTERS[name].function.__module__}); "
                "choose another name."
            )
        router = described(
            name,
            function,
            options=options,
            distribution=distribution,
            fixed_number=fixed_number,
            batch_dependent=batch_dependent,
            random=random,
            loss_of_batch=loss_of_batch,
            gate=gate,
            state=state,
        )
        if own:
            DECLARED.append(router)
        else:
            _ROUTERS[name] = router
        return function

    return register


def described(
    name: str,
    function: RouterFunction,
    *,
    options: type | None = None,
    state: RouterState | None = None,
    **declared: Any,
) -> Router:
    """A router, as `register_router` makes it, registered nowhere.

    Args:
        name: Its name.
        function: The function.
        options: As for `register_router`, as are all others.
        state: What it remembers.
        **declared: What else it declares.

    Raises:
        ConfigError: The function does not have the signature of a router.
    """
    parameters = _keywords(name, function)
    kind = _derived_options(name, parameters) if options is None else options
    known = {field.name for field in dataclasses.fields(kind)} | {"top_k"}
    if taken := sorted(known & set(_RESERVED)):
        raise ConfigError(
            f"the router '{name}' has the option {checks.join_words(taken, 'and')}, which means "
            "something else in a configuration; call it otherwise."
        )
    context = parameters.keys() - known
    if unknown := sorted(context - CONTEXT.keys()):
        raise ConfigError(
            f"the router '{name}' has the argument {checks.join_words(unknown, 'and')} without "
            "a default, which routers are not given; give it a default to make it an option. "
            f"Routers are given {checks.join_words(list(CONTEXT), 'and')}."
        )
    if ("state" in context) != (state is not None):
        raise ConfigError(
            f"the router '{name}' needs both an argument 'state' and "
            "register_router(..., state=...), which says how it begins and changes; it has "
            "only one of them."
        )
    return Router(
        name=name,
        function=function,
        options=kind,
        context=frozenset(context),
        options_used=frozenset(known & parameters.keys()),
        state=state,
        **declared,
    )


@contextmanager
def registered_router(name: str, function: RouterFunction, **settings: Any) -> Iterator[None]:
    """Register a router only within the `with` block; arguments as for `register_router`."""
    register_router(name, **settings)(function)
    try:
        yield
    finally:
        del _ROUTERS[name]


def router_names() -> tuple[str, ...]:
    """Names of all routers, sorted."""
    return tuple(sorted(_ROUTERS))


def find_router(router: str | RouterConfig) -> Router:
    """The router with this name; a `RouterConfig` may also name one of the user's own file.

    Raises:
        ConfigError: There is none, or its file was not given.
    """
    name = router if isinstance(router, str) else router.name
    if isinstance(router, RouterConfig) and names_code(name):
        return OWN_ROUTERS.find(router)
    if name not in _ROUTERS:
        raise ConfigError(
            f"there is no router '{checks.clipped(name)}'.{checks.nearest(name, _ROUTERS)} Routers "
            f"are {checks.join_words(router_names(), 'and')}; your own is the path of a file and a "
            "function in it, as in my_router.py:my_router, or one that was registered with "
            "moe_megatron.routing.register_router before the run starts."
        )
    return _ROUTERS[name]


def name_of(function: RouterFunction) -> str:
    """The name under which a function is registered; if it is not yet, its own from now on.

    Raises:
        ConfigError: Its own name is taken, or it does not have the signature of a router.
    """
    for name, router in _ROUTERS.items():
        if router.function is function:
            return name
    name = getattr(function, "__name__", type(function).__name__)
    register_router(name)(function)
    return name


def resolve(moe: MoEConfig) -> MoEConfig:
    """Fill in and check every option of the router.

    Returns:
        A copy of `moe` with all options of its router; `moe` itself for a dense model, and where
        the router is code of somebody's own that nobody gave here: whoever only reads what was
        trained with it does not need it, and it was noted with all of its options.

    Raises:
        ConfigError: There is no such router, an option is wrong, or the router does not work with
            another field.
    """
    if moe.num_experts is None or not OWN_ROUTERS.holds(moe.router):
        return moe
    return _resolved(moe)


def _resolved(moe: MoEConfig) -> MoEConfig:
    router = find_router(moe.router)
    with telling(router.code):
        options = router.configured(moe.router)
        if hasattr(options, "check"):
            options.check(moe)
    _check_compatibility(router, moe)
    return dataclasses.replace(
        moe, router=dataclasses.replace(moe.router, options=dataclasses.asdict(options))
    )


def bind(moe: MoEConfig) -> BoundRouter:
    """The router of a model, ready to route.

    Raises:
        ConfigError: As `resolve`, and if the router is code of the user's own that was not given.
    """
    router = find_router(moe.router)
    options = router.configured(_resolved(moe).router)
    with telling(router.code):
        distribution = router.distribution(options)
    return BoundRouter(router=router, options=options, top_k=moe.top_k, distribution=distribution)


def _check_compatibility(router: Router, moe: MoEConfig) -> None:
    """Reject other fields of `moe` that the router does not support."""
    unsupported = {
        "expert_bias": moe.expert_bias and "expert_bias" not in router.context,
        "load_balancing": router.name != "top_k" and moe.load_balancing in BALANCES_WITHOUT_LOSS,
        "token_dispatcher": not router.fixed_number and moe.token_dispatcher == "flex",
        "pad_to_capacity": not router.fixed_number and moe.pad_to_capacity,
    }
    found = [f"moe.{field} ({getattr(moe, field)})" for field, set_ in unsupported.items() if set_]
    if found:
        raise ConfigError(
            f"the router '{router.name}' does not work with {checks.join_words(found, 'and')}; "
            "leave such fields at their defaults, or use 'top_k'."
        )


def _keywords(name: str, function: RouterFunction) -> dict[str, inspect.Parameter]:
    """The keyword arguments of a router function, whose signature is checked."""
    signature = signature_of(function, f"the router '{name}'")
    first, rest = None, list(signature.parameters.values())
    if rest:
        first, *rest = rest
    keywords = {p.name: p for p in rest if p.kind is inspect.Parameter.KEYWORD_ONLY}
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY
    takes_logits = first is not None and first.kind in positional
    if not takes_logits or len(keywords) != len(rest) or "top_k" not in keywords:
        raise ConfigError(
            f"the router '{name}' must take the logits and then only keyword arguments, including "
            f"top_k, as in (logits_TE, *, top_k), not {signature}."
        )
    return keywords


def _derived_options(name: str, parameters: Mapping[str, inspect.Parameter]) -> type:
    """The options of a router that has no dataclass of its own: its arguments with defaults."""
    own = (it for it in parameters.values() if it.name not in {*CONTEXT, "top_k"})
    return options_class(name, own, section="moe.router")
