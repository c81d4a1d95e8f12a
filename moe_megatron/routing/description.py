"""What a router is: its function, and what it declares. `described` reads its signature.

It does not know which routers there are (`registry`), nor how one is called (`bound`).
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from moe_megatron.config import RouterConfig, checks
from moe_megatron.config.own_code import OwnCode
from moe_megatron.config.signature import configured, options_class, signature_of
from moe_megatron.errors import ConfigError
from moe_megatron.routing.decision import Routing
from moe_megatron.routing.gate import Gate
from moe_megatron.routing.state import RouterState

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
    "task_ids": "int64 [T], the number of the task that a token is of, in the order of data.tasks; "
    "-1 where that is not known",
}
"""Arguments that a router gets in addition to logits and `top_k` if its signature names them."""

BatchDependence = bool | Literal["training"]
"""Whether the experts of a token depend on other tokens of the batch; "training": there alone."""

RouterFunction = Callable[..., Routing]
Distribution = Callable[[Tensor], Tensor]
"""From logits to the router's distribution over experts, float32 [T, E], rows summing to 1."""

_PACKAGE = __name__.partition(".")[0]
_RESERVED = ("name", "sha256", "replaces")
"""What stands beside the options in a configuration."""


def softmax(logits_TE: Tensor) -> Tensor:
    """The default distribution of a router: the softmax of the logits, float32 [T, E]."""
    return torch.softmax(logits_TE, dim=-1, dtype=torch.float32)


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
