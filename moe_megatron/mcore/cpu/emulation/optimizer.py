"""The AdamW that Megatron's distributed optimizer wraps where Transformer Engine is absent.

torch's AdamW keeps one step count per parameter. Megatron 0.19 expects one per parameter group, as
in Transformer Engine's optimizer: saving asserts that all step counts of the state have exactly one
value (an empty shard has none), loading hands every parameter the SAME step tensor (which torch
would then advance once per parameter), and loading a resharded state fails on the missing key. So
this optimizer counts steps per group, and adds the per-parameter counts when Megatron asks for its
state.
"""

from collections.abc import Callable
from inspect import unwrap
from typing import Any

import torch
from torch.optim.adamw import adamw

from moe_megatron.mcore.cpu import fast

_EMPTY_SHARD = "empty_shard"
"""Key of a state entry that stands for "this rank owns no parameter"; never stored."""


class MegatronAdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` with one step count per parameter group, by torch's fused kernel.

    torch keeps its compiler away from some methods, by a decorator that imports the compiler first.
    Here they have no decorator: the import would be a tenth of the start of a rank.
    """

    add_param_group = unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = unwrap(torch.optim.Optimizer.zero_grad)
    _whole_state = unwrap(torch.optim.Optimizer.state_dict)
    _load_whole_state = unwrap(torch.optim.Optimizer.load_state_dict)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the parameters that have a gradient."""
        assert closure is None, "Megatron computes gradients before it calls the optimizer"
        for group in self.param_groups:
            group["step"] = float(group.get("step") or 0.0) + 1.0
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            states = [self._moments(p) for p in params]
            adamw(
                params,
                [p.grad for p in params],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                # adamw advances these before it uses them.
                list(torch.full((len(params),), group["step"] - 1.0).unbind()),
                fused=fast.enabled("optimizer"),
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
        return None

    def _moments(self, param: torch.Tensor) -> dict[str, torch.Tensor]:
        state: dict[str, torch.Tensor] = self.state[param]
        if not state:
            state["exp_avg"] = torch.zeros_like(param)
            state["exp_avg_sq"] = torch.zeros_like(param)
        return state

    def state_dict(self) -> dict[str, Any]:
        """The state with the step count in every entry; an empty shard gets a placeholder entry."""
        state = self._whole_state()
        counts = [float(group["step"]) for group in self.param_groups if group.get("step")]
        step = torch.tensor(max(counts, default=0.0))
        entries = {key: {**entry, "step": step} for key, entry in state["state"].items()}
        return {**state, "state": entries or {_EMPTY_SHARD: {"step": step}}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; step counts are taken from its parameter groups."""
        entries = {
            key: {name: value for name, value in entry.items() if name != "step"}
            for key, entry in state_dict["state"].items()
            if key != _EMPTY_SHARD
        }
        self._load_whole_state({**state_dict, "state": entries})

    def __setstate__(self, state: dict[str, Any]) -> None:
        # AdamW's own method upgrades old checkpoints and requires a step count in every entry.
        torch.optim.Optimizer.__setstate__(self, state)
