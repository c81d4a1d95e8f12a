"""Changes to single Megatron modules that a different view of torch cannot make.

Each fix receives the module right after it was executed on a machine without CUDA.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch


def _fix_rng_tracker(module: ModuleType) -> None:
    """Keep the model-parallel random states in torch's CPU generator."""

    def get_state(device: Any = "cuda", clone: bool = False, graph_safe: bool = False) -> Any:
        return torch.get_rng_state()

    def set_state(new_state: Any, device: Any = -1, graph_safe: bool = False) -> None:
        torch.set_rng_state(new_state)

    module._get_cuda_rng_state = get_state  # type: ignore[attr-defined]
    module._set_cuda_rng_state = set_state  # type: ignore[attr-defined]


MODULE_FIXES: dict[str, Callable[[ModuleType], None]] = {
    "megatron.core.tensor_parallel.random": _fix_rng_tracker,
}
