"""How far routing has moved: which of the experts that a token had at first it still has.

    kept_l = sum_t |first_lt & now_lt| / sum_t |first_lt|

Each process remembers the experts of some tokens of each task. It does not know tasks but by name,
and no router but that it says what it has chosen.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from moe_megatron.mcore.layers.layer_numbers import number_of
from moe_megatron.mcore.layers.measured_router import MeasuredRouter

_MOST_TOKENS = 4096
"""Tokens of a task whose experts a process remembers, of each layer."""


class RoutingDrift:
    """Remembers the routing of the first evaluation, and compares later ones with it.

    Args:
        layers: Global numbers of all layers with experts, on whichever process.
    """

    def __init__(self, layers: Sequence[int]) -> None:
        self._layers = tuple(layers)
        self._first: dict[str, dict[int, Tensor]] = {}

    @contextmanager
    def watched(self, model: Sequence[Any], seen: dict[int, Tensor]) -> Iterator[None]:
        """Collect the experts of the first tokens of an evaluation, bool [T, E] by layer."""
        routers = [
            it for chunk in model for it in chunk.modules() if isinstance(it, MeasuredRouter)
        ]
        for router in routers:
            router.watch = _Collecting(seen, number_of(router))
        try:
            yield
        finally:
            for router in routers:
                router.watch = None

    def kept(self, task: str, seen: Mapping[int, Tensor]) -> tuple[float, ...]:
        """The share that was kept, of each layer; every rank must call it.

        The first call for a task remembers; everything is kept then.
        """
        if not self._layers:
            return ()
        first = self._first.setdefault(task, dict(seen))
        device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
        sums = torch.zeros(len(self._layers), 2, dtype=torch.float64, device=device)
        for place, layer in enumerate(self._layers):
            if layer in first:
                before, now = first[layer], seen[layer]
                sums[place, 0], sums[place, 1] = (before & now).sum(), before.sum()
        dist.all_reduce(sums)
        return tuple((sums[:, 0] / sums[:, 1].clamp(min=1)).tolist())


class _Collecting:
    """Takes the maps of one layer, until there are enough tokens."""

    def __init__(self, seen: dict[int, Tensor], layer: int) -> None:
        self._seen, self._layer = seen, layer

    def __call__(self, map_TE: Tensor, padding_T: Tensor | None) -> None:
        if padding_T is not None:
            map_TE = map_TE & ~padding_T.unsqueeze(-1)
        earlier = self._seen.get(self._layer)
        known = 0 if earlier is None else len(earlier)
        new = map_TE[: max(0, _MOST_TOKENS - known)].detach().bool().clone()
        self._seen[self._layer] = new if earlier is None else torch.cat((earlier, new))
