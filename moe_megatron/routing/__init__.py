"""The mathematics of routing: pure functions of tensors, shared by every model and engine.

Terms are Megatron's: the gate outputs `logits`, a score function turns them into `scores`, `probs`
are the combine weights, and `routing_map` says which token goes to which expert. Tensor names end
in their axes: T tokens, E experts, K experts of a token. Nothing here knows processes or Megatron
itself, and only `modules` holds parameters.

A router is one file of this package: a function, and optionally a frozen dataclass of its options,
registered by a decorator (`registry`). Adding the file is all it takes. `losses` and `capacity`
work with every router.
"""

import importlib
import pkgutil

from moe_megatron.routing.balancing import (
    BalancingMethod,
    balancing_names,
    find_balancing,
    register_balancing,
)
from moe_megatron.routing.bound import BoundRouter
from moe_megatron.routing.capacity import drop_over_capacity, expert_capacity
from moe_megatron.routing.decision import Routing
from moe_megatron.routing.gate import Gate, Parameter
from moe_megatron.routing.info import RoutingInfo
from moe_megatron.routing.load_balancer import LoadBalancer
from moe_megatron.routing.losses import (
    load_balancing_loss,
    router_entropy,
    sequence_load_balancing_loss,
    z_loss,
)
from moe_megatron.routing.modules import ExpertChoice, RoutingDecision, TopKRouter
from moe_megatron.routing.own_router import given_again, own_router, router_words, try_router
from moe_megatron.routing.registry import (
    bind,
    find_router,
    name_of,
    register_router,
    registered_router,
    resolve,
    router_names,
)
from moe_megatron.routing.state import RouterState

for _module in pkgutil.iter_modules(__path__):  # a router is registered when its file is imported
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "BalancingMethod",
    "BoundRouter",
    "ExpertChoice",
    "Gate",
    "LoadBalancer",
    "Parameter",
    "RouterState",
    "Routing",
    "RoutingDecision",
    "RoutingInfo",
    "TopKRouter",
    "balancing_names",
    "bind",
    "drop_over_capacity",
    "expert_capacity",
    "find_balancing",
    "find_router",
    "given_again",
    "load_balancing_loss",
    "name_of",
    "own_router",
    "register_balancing",
    "register_router",
    "registered_router",
    "resolve",
    "router_entropy",
    "router_names",
    "router_words",
    "sequence_load_balancing_loss",
    "try_router",
    "z_loss",
]
