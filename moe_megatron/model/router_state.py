"""The buffers in which a model keeps what its routers remember (`routing.state`).

They are float32 whatever the precision of the model, and saved with it. What they mean and how they
change is the router's to say.
"""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from moe_megatron.routing.state import RouterState, State


class StateBuffers(nn.Module):
    """The state of one router, as buffers under their own names.

    Args:
        state: The router's.
        num_experts: Experts of the layer.
    """

    def __init__(self, state: RouterState, num_experts: int) -> None:
        super().__init__()
        for name, value in state.first(num_experts).items():
            self.register_buffer(name, value.to(torch.float32))

    def values(self) -> State:
        """The tensors by name."""
        return dict(self.named_buffers())

    def replace(self, state: State) -> None:
        """Take over other values, in place."""
        with torch.no_grad():
            for name, buffer in self.named_buffers():
                buffer.copy_(state[name])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move to the device that `fn` moves to, but keep the precision."""

        def moved(tensor: Tensor) -> Tensor:
            there = fn(tensor)
            # A conversion would round, so what it gives is not used.
            return there if there.dtype == tensor.dtype else tensor.to(there.device)

        applied: Any = super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        return applied  # type: ignore[no-any-return]
