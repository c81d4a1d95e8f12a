"""What a router remembers in Megatron, and the sums over a step from which it is renewed.

When a step ends, and which processes have tokens of their own, is not known here
(`loop/router_states.py`).
"""

import torch
from torch import Tensor, nn

from moe_megatron.errors import ConfigError
from moe_megatron.model.router_state import StateBuffers
from moe_megatron.routing import BoundRouter
from moe_megatron.routing.state import State


class ObservedState(StateBuffers):
    """The state of one router, and this step's sums, float64, which no checkpoint holds.

    Args:
        route: The router.
        num_experts: Experts of the layer.
        device: Where it routes.
    """

    frozen = False
    """Whether it stays what it is."""

    def __init__(self, route: BoundRouter, num_experts: int, device: torch.device) -> None:
        assert route.router.state is not None
        super().__init__(route.router.state, num_experts)
        self._route = route
        self._sums = {
            name: value.to(device, torch.float64)
            for name, value in route.router.state.sums(num_experts).items()
        }
        self.to(device)

    def observe(self, observed: State) -> None:
        """Add what a router observed in a micro-batch.

        Raises:
            ConfigError: It has other names or shapes than the router's `sums`.
        """
        expected = {name: tuple(value.shape) for name, value in self._sums.items()}
        found = {name: tuple(value.shape) for name, value in observed.items()}
        if found != expected:
            raise ConfigError(
                f"the router '{self._route.router.name}' observed {found or 'nothing'}, but its "
                f"state sums up {expected}; return Routing.observing(...) with these shapes."
            )
        for name, value in observed.items():
            self._sums[name].add_(value.detach())

    @property
    def sums(self) -> Tensor:
        """All sums of this step, one after the other."""
        return torch.cat([value.flatten() for value in self._sums.values()])

    def renew(self, sums: Tensor) -> None:
        """Take the state of the next step from the sums of all processes, and start new sums."""
        if self.frozen:
            self.discard()
            return
        sizes = [value.numel() for value in self._sums.values()]
        parts = zip(self._sums.items(), torch.split(sums, sizes), strict=True)
        total = {name: part.view_as(value) for (name, value), part in parts}
        with torch.no_grad():
            self.replace(self._route.next_state(self.values(), total))
        self.discard()

    def discard(self) -> None:
        """Forget what was observed in this step."""
        for value in self._sums.values():
            value.zero_()


def states_of(*chunks: nn.Module) -> list[ObservedState]:
    """The states of all routers of some model chunks, in order."""
    return [it for chunk in chunks for it in chunk.modules() if isinstance(it, ObservedState)]
