"""Experts: the modules that tokens are sent to, and the pools that hold them.

    class CustomExpert(Expert):
        def __init__(self, hidden_size, intermediate_size):
            super().__init__()
            self.up = nn.Linear(hidden_size, intermediate_size)
            self.down = nn.Linear(intermediate_size, hidden_size)

        def forward(self, x):
            return self.down(torch.sin(self.up(x)))

    pool = ExpertPool(CustomExpert, num_experts=8, hidden_size=64, intermediate_size=128)

An expert maps rows to rows, [n, hidden] to [n, hidden], and knows neither its neighbours nor who
sends what. A kind of expert is one class, registered by a decorator (`kinds`); adding a file to
this package is all that a new one takes. Nothing here knows models or Megatron.
"""

import importlib
import pkgutil

from moe_megatron.experts.expert import Expert
from moe_megatron.experts.in_words import described
from moe_megatron.experts.kinds import (
    expert_builder,
    expert_names,
    expert_tensors,
    find_expert,
    name_of,
    register_expert,
    registered_expert,
    resolve,
)
from moe_megatron.experts.own_expert import (
    expert_given_again,
    own_expert,
    own_file_words,
    try_expert,
)
from moe_megatron.experts.pool import ExpertPool

for _module in pkgutil.iter_modules(__path__):  # a kind is registered when its file is imported
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "Expert",
    "ExpertPool",
    "described",
    "expert_builder",
    "expert_given_again",
    "expert_names",
    "expert_tensors",
    "find_expert",
    "name_of",
    "own_expert",
    "own_file_words",
    "register_expert",
    "registered_expert",
    "resolve",
    "try_expert",
]
