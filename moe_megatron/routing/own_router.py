"""A router in a file of the user's own: `path/to/my_router.py:my_router`.

The function is a router as any other, decorated with `@register_router` or plain. It is found under
the file's name, without folders, and its hash (`config/own_code`), and not under the name that a
decorator gives it, so that two files, or two versions of one, never meet. Only who was told by a
person which file to load calls `own_router`.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from moe_megatron.config import MoEConfig, RouterConfig
from moe_megatron.config.own_code import load_code, reading_signature
from moe_megatron.errors import ConfigError
from moe_megatron.routing.bound import BoundRouter
from moe_megatron.routing.description import Router, described
from moe_megatron.routing.registry import DECLARED, OWN_ROUTERS, bind
from moe_megatron.routing.state import State

_TOKENS = 32


def own_router(given: RouterConfig | str) -> RouterConfig:
    """Load a router's file, if that is what a person has named.

    Args:
        given: A name, or a name with options. The path of a Python file, a colon and a function in
            it is a file; whatever else is left as it is. So is a note of a file with its hash.

    Returns:
        The same choice; of a file, with its name without folders and with its hash.

    Raises:
        ConfigError: There is no such file or function, it raises when it is loaded, or is no
            router.
    """
    return OWN_ROUTERS.taken(given, _loaded)


def given_again(given: RouterConfig | str, noted: RouterConfig) -> RouterConfig:
    """The router that a person has given for a run or a model that notes one.

    Args:
        given: As for `own_router`.
        noted: What the run or model was saved with.

    Returns:
        The noted router with its options, and the hash of the file that was given.

    Raises:
        ConfigError: It is another router, or its file has changed and is not said to replace it.
    """
    return OWN_ROUTERS.given_again(own_router(given), noted)


def router_words(router: RouterConfig) -> list[str]:
    """What tells another process of this machine, or a batch job, to load the same file.

    Raises:
        ConfigError: It was not given here.
    """
    return OWN_ROUTERS.words(router)


def try_router(moe: MoEConfig, hidden_size: int) -> None:
    """Route a few random tokens with a router of the user's own, in evaluation and in training.

    Its gate computes their logits, and what it remembers changes once.

    Args:
        moe: The experts and the router of a model.
        hidden_size: Features of what enters its gate.

    Raises:
        ConfigError: It raises, or returns what is no routing, no logits or no state.
    """
    if moe.num_experts is None or not OWN_ROUTERS.holds(moe.router):
        return
    route = bind(moe)
    if not route.router.is_of_users:
        return
    # On the CPU, whatever the model is built on, and without a trace in the generators of the run.
    with torch.device("cpu"), torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        hidden_TH = torch.randn(_TOKENS, hidden_size)
        state = route.first_state(moe.num_experts)
        for training in (False, True):
            routing = route(
                _logits(route, hidden_TH, moe.num_experts, training),
                hidden=hidden_TH,
                padding=None,
                training=training,
                expert_bias=torch.zeros(moe.num_experts) if moe.expert_bias else None,
                state=state,
                token_ids=torch.randint(0, 100, (_TOKENS,)),
                domain_ids=torch.full((_TOKENS,), -1),
                task_ids=torch.full((_TOKENS,), -1),
            )
        if state is not None:
            _step(route, state, routing.observed, moe.num_experts)


def _logits(route: BoundRouter, hidden_TH: Tensor, num_experts: int, training: bool) -> Tensor:
    """Logits of a size as after some training, from the router's own gate if it has one."""
    tensors = {
        name: torch.full(it.shape, it.first)
        if it.first is not None
        else torch.randn(it.shape) / math.sqrt(it.shape[-1])
        for name, it in route.gate_tensors(num_experts, hidden_TH.shape[-1]).items()
    }
    if route.router.gate is None:
        return hidden_TH @ tensors["weight"].T
    logits = route.gate_logits(hidden_TH, training=training, **tensors)
    wanted = [len(hidden_TH), len(tensors["weight"])]
    found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found != wanted:
        raise ConfigError(
            f"the gate of the router {route.place} returns {found} for {wanted[0]} tokens, not "
            f"logits of the shape {wanted}, a column for each row of its 'weight'."
        )
    if not bool(logits.isfinite().all()):
        raise ConfigError(
            f"the gate of the router {route.place} returns logits that are not finite for hidden "
            "states that all are."
        )
    return logits


def _step(route: BoundRouter, state: State, observed: State, num_experts: int) -> None:
    """Let the router change what it remembers, and check that names and shapes stay."""
    sums = route.zero_sums(num_experts)
    expected, found = _shapes(sums), _shapes(observed)
    if found != expected:
        raise ConfigError(
            f"the router {route.place} observed {found or 'nothing'} in training, but its state "
            f"sums up {expected}; return Routing.observing(...) with these shapes."
        )
    after = route.next_state(state, {name: it.double() for name, it in observed.items()})
    if _shapes(after) != _shapes(state):
        raise ConfigError(
            f"the state of the router {route.place} has the shapes {_shapes(after)} after a step, "
            f"and had {_shapes(state)} before it; they must stay."
        )


def _shapes(tensors: State) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in tensors.items()}


def _loaded(spec: str) -> Router:
    code = load_code(spec)
    if isinstance(code.found, type) or not callable(code.found):
        kind = "a class" if isinstance(code.found, type) else type(code.found).__name__
        raise ConfigError(
            f"{code.place} is {kind}, not a router; a router is a function (logits, *, top_k) that "
            "returns a Routing."
        )
    router = next((it for it in reversed(DECLARED) if it.function is code.found), None)
    if router is None:
        with reading_signature(code):
            router = described(code.label, code.found)
    return replace(router, name=code.label, code=code)
