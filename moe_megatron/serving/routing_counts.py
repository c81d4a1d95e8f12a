"""Counts, for each layer, how many of the served tokens go to each expert."""

import re
import threading
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_LAYER = re.compile(r"\.layers\.(\d+)\.")


class RoutingCounts:
    """The experts of a model's tokens, from when it was made."""

    def __init__(self, model: nn.Module) -> None:
        places = [
            (int(found[1]), module)
            for name, module in model.named_modules()
            if hasattr(module, "is_transposed")
            and hasattr(module, "num_experts")
            and (found := _LAYER.search(f".{name}."))
        ]
        self.layers = [layer + 1 for layer, _ in places]
        """Layers with experts, from 1."""
        self._lock = threading.Lock()
        most = max((int(it.num_experts) for _, it in places), default=0)
        self._table_LE = np.zeros((len(places), most), np.int64)
        for row, (_, module) in enumerate(places):
            module.register_forward_pre_hook(self._counting(row), with_kwargs=True)

    def table(self) -> NDArray[np.int64]:
        """Assignments of tokens to experts [L, E]."""
        with self._lock:
            return self._table_LE.copy()

    def _counting(self, row: int) -> Any:
        experts = self._table_LE.shape[1]

        def count(module: nn.Module, given: tuple[Any, ...], more: dict[str, Any]) -> None:
            chosen_TK: Tensor = given[1] if len(given) > 1 else more["top_k_index"]
            known = chosen_TK[chosen_TK < experts].reshape(-1)
            found_E = torch.bincount(known, minlength=experts).cpu().numpy()
            with self._lock:
                self._table_LE[row] += found_E

        return count
