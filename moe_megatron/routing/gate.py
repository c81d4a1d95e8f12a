"""Gates other than a matrix: how a router gets its logits, and the parameters that this takes.

The usual gate, logits = x W^T, is the engine's own. A router that needs another one declares it:

    def cosine_gate(hidden_TH, *, weight, temperature):
        return functional.normalize(hidden_TH) @ functional.normalize(weight).T / temperature

    def cosine_parameters(num_experts, hidden_size):
        weight, temperature = Parameter((num_experts, hidden_size)), Parameter((1,), first=0.1)
        return {"weight": weight, "temperature": temperature}

    @register_router("cosine", gate=Gate(cosine_gate, cosine_parameters))

Engines hold the parameters, give them to the function in the precision of the routing, and save
them with the model. Shapes: T tokens, H hidden size, E experts.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from moe_megatron.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Parameter:
    """A learned tensor of a gate."""

    shape: tuple[int, ...]
    first: float | None = None
    """The value that all its numbers start with; None: they are drawn as other weights are."""


@dataclass(frozen=True, slots=True)
class Gate:
    """From the input of the router to its logits."""

    function: Callable[..., Tensor]
    """`(hidden_TH, *, <parameters>, <options>, training) -> logits_TE`: it is given the parameters,
    options and `training` that its signature names."""

    parameters: Callable[..., Mapping[str, Parameter]]
    """`(num_experts, hidden_size, *, <options>)` to the parameters by name, with those options that
    its signature names. One of them is `weight`, whose first axis is the experts."""

    def logits(self, hidden_TH: Tensor, **context: Any) -> Tensor:
        """The logits [T, E].

        Args:
            hidden_TH: What enters the gate.
            **context: All parameters, all options, and `training`.
        """
        return self.function(hidden_TH, **_named(self.function, context))

    def tensors(
        self, num_experts: int, hidden_size: int, options: Mapping[str, Any]
    ) -> dict[str, Parameter]:
        """The parameters for a model of this size, `weight` first.

        Raises:
            ConfigError: None is called `weight`, or one is no `Parameter`.
        """
        named = _named(self.parameters, options)
        found = dict(self.parameters(num_experts, hidden_size, **named))
        if not isinstance(found.get("weight"), Parameter) or not found["weight"].shape:
            raise ConfigError(
                "the parameters of a gate must include 'weight', as in {'weight': "
                f"Parameter((num_experts, hidden_size))}}, not only {sorted(found) or 'none'}."
            )
        for name, parameter in found.items():
            if not isinstance(parameter, Parameter):
                raise ConfigError(
                    f"'{name}' of a gate must be a Parameter, which says its shape, not "
                    f"{type(parameter).__name__}."
                )
        return {"weight": found.pop("weight"), **found}


def _named(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a function's signature names."""
    return {name: values[name] for name in _names(function) if name in values}


@functools.cache
def _names(function: Callable[..., Any]) -> tuple[str, ...]:
    """The arguments of a function; layers ask in every pass."""
    return tuple(inspect.signature(function).parameters)
