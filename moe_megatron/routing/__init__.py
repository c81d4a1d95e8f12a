"""The maths of routing: pure functions of tensors, the same for every model and every engine.

Words are Megatron's: `logits` leave the gate, a score function makes `scores` of them, `probs` are
the combine weights, and `routing_map` says which token goes to which expert. Names of tensors end
in their axes: T tokens, E experts, K experts of a token. Nothing here holds parameters or state, or
knows processes or Megatron itself.

A router is one file of this package, which is all it takes to add one: a frozen dataclass of its
options and one function, registered by decorator (`registry`). `losses` and `capacity` serve every
router.
"""

import importlib
import pkgutil

from moe_megatron.routing.capacity import drop_over_capacity, expert_capacity
from moe_megatron.routing.decision import Routing
from moe_megatron.routing.losses import (
    load_balancing_loss,
    router_entropy,
    sequence_load_balancing_loss,
    z_loss,
)
from moe_megatron.routing.registry import (
    BoundRouter,
    bind,
    find_router,
    register_router,
    registered_router,
    resolve,
    router_names,
)

for _module in pkgutil.iter_modules(__path__):  # a router is registered when its file is imported
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "BoundRouter",
    "Routing",
    "bind",
    "drop_over_capacity",
    "expert_capacity",
    "find_router",
    "load_balancing_loss",
    "register_router",
    "registered_router",
    "resolve",
    "router_entropy",
    "router_names",
    "sequence_load_balancing_loss",
    "z_loss",
]
