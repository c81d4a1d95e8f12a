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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from moe_megatron.config import MoEConfig, RouterConfig, checks
from moe_megatron.config.moe import BALANCES_WITHOUT_LOSS
from moe_megatron.config.own_code import is_own_code, names_code
from moe_megatron.config.own_shelf import OwnShelf
from moe_megatron.errors import ConfigError
from moe_megatron.routing.bound import BoundRouter
from moe_megatron.routing.description import (
    BatchDependence,
    Distribution,
    Router,
    RouterFunction,
    described,
    softmax,
)
from moe_megatron.routing.gate import Gate
from moe_megatron.routing.guard import telling
from moe_megatron.routing.state import RouterState

_ROUTERS: dict[str, Router] = {}
OWN_ROUTERS: OwnShelf[RouterConfig, Router] = OwnShelf(RouterConfig)
"""Routers of files that were given in this process."""
DECLARED: list[Router] = []
"""Routers that such files have decorated, with what they declare, oldest first."""


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
    `CONTEXT` that its signature names. A cell of a notebook that is executed again replaces its
    router.

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
        own, earlier = is_own_code(function), _ROUTERS.get(name)
        if earlier is not None and not own and not _is_newer(function, earlier.function):
            raise ConfigError(
                f"there is already a router '{name}' ({earlier.place}); choose another name."
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


@contextmanager
def registered_router(name: str, function: RouterFunction, **settings: Any) -> Iterator[None]:
    """Register a router only within the `with` block; arguments as for `register_router`."""
    earlier = _ROUTERS.get(name)
    register_router(name, **settings)(function)
    try:
        yield
    finally:
        del _ROUTERS[name]
        if earlier is not None:
            _ROUTERS[name] = earlier


def _is_newer(function: RouterFunction, earlier: RouterFunction) -> bool:
    """Whether a function was written where an earlier one was: a cell of a notebook, again."""
    return all(
        getattr(function, part, None) == getattr(earlier, part, "")
        for part in ("__module__", "__qualname__")
    )


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
