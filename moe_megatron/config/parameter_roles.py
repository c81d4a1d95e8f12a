"""What a parameter is to its model: router, routed expert, attention and so on, from its name.

A parameter is known by its place: the name that it has in Megatron's whole model, under every
layout, and the numbers of its layer and expert. It does not know tensors or models.
"""

import re
from dataclasses import dataclass
from typing import Literal, get_args

Role = Literal[
    "router",
    "experts",
    "shared_experts",
    "attention",
    "mlp",
    "embeddings",
    "output",
    "norms",
    "other",
]
"""`experts` are the routed ones, `mlp` the MLPs of layers without experts, `output` the head, which
a model with tied embeddings does not have."""

ROLES: tuple[Role, ...] = get_args(Role)

# The first pattern that fits decides: a norm within an expert is a part of the expert, and the norm
# that is fused into the query's matrix is a norm.
_RULES: tuple[tuple[Role, re.Pattern[str]], ...] = (
    ("router", re.compile(r"(^|\.)router\.")),
    ("shared_experts", re.compile(r"(^|\.)shared_experts?\.")),
    ("experts", re.compile(r"(^|\.)mlp\.experts\.")),
    ("norms", re.compile(r"(^|[._])(layer_?norm|[eh]norm)")),
    ("norms", re.compile(r"layer_norm_(weight|bias)$")),
    ("attention", re.compile(r"(^|\.)(self|cross)_attention\.")),
    ("mlp", re.compile(r"(^|\.)mlp\.")),
    ("embeddings", re.compile(r"(^|\.)embedding\.")),
    ("output", re.compile(r"(^|\.)output_layer\.")),
)


def role_of(name: str) -> Role:
    """The role of a parameter.

    Args:
        name: Its name in Megatron's model, such as "decoder.layers.0.mlp.router.weight"; what
            wrappers of the model put before it does not matter.
    """
    return next((role for role, pattern in _RULES if pattern.search(name)), "other")


@dataclass(frozen=True, slots=True)
class ParameterPlace:
    """Which parameter of the whole model one is, whatever the layout."""

    name: str
    """As in a model on a single process: its layers and experts count from 0."""
    layer: int | None = None
    """Number of the layer, from 1, after the decoder's those for multi-token prediction; None
    outside of layers."""
    expert: int | None = None
    """Number of the routed expert in its layer, from 0; None for what is no part of one."""

    @property
    def role(self) -> Role:
        """What it is to its model."""
        return role_of(self.name)
