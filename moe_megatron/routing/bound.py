"""A router with its options and number of experts, as models and engines call it.

What a router that is not of this package raises and returns is looked at here (`guard`). It does
not know which routers there are.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moe_megatron.errors import ConfigError
from moe_megatron.routing.decision import Routing
from moe_megatron.routing.description import Distribution, Router
from moe_megatron.routing.gate import Parameter
from moe_megatron.routing.guard import problem, telling
from moe_megatron.routing.state import State


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
