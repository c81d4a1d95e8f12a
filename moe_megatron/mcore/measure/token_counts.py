"""Which tokens of the vocabulary each expert gets in one step, exactly, and the most frequent.

A pair of token and expert is one number, so that counting is sorting: memory grows with the pairs
that occur, not with vocabulary times experts. When the step ends, each process gets the pairs of
its share of all experts, whose most frequent tokens it then knows for certain. This waits for the
device and for the other processes, so it is for a few steps. It does not know what routers are.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from moe_megatron.telemetry.values.top_tokens import MOST_TOKENS

_ID_BITS = 32
_IDS = 2**_ID_BITS - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedTokens:
    """The most frequent tokens of all experts, and what sums to their counts over all processes."""

    ids: npt.NDArray[np.int32]
    """[L, E, K], the same everywhere; -1 where an expert had fewer tokens."""
    parts: tuple[Tensor, Tensor, Tensor]
    """`assigned`, `counts` and `in_layer` of `TopTokens`, of all layers, as far as they are known
    here."""


class TokenCounts:
    """Counts the tokens of one step.

    Args:
        num_layers: L.
        num_experts: E, in each layer.
        device: Where the counts are.
    """

    def __init__(self, num_layers: int, num_experts: int, device: torch.device) -> None:
        self._shape, self._device = (num_layers, num_experts), device
        self._of_layers: dict[int, tuple[Tensor, Tensor]] = {}
        """Sorted pairs of each layer, row of the expert << 32 | id, and how often each occurs."""

    def add(self, layer: int, map_TE: Tensor, ids_T: Tensor) -> None:
        """Count a micro-batch.

        Args:
            layer: The layer, from 0.
            map_TE: bool [T, E], which experts each token has.
            ids_T: int64 [T], the id of each token.
        """
        tokens, experts = map_TE.nonzero(as_tuple=True)
        rows = layer * self._shape[1] + experts
        keys = (rows << _ID_BITS) | ids_T.to(torch.int64)[tokens]
        before, counts = self._of_layers.get(layer, self._nothing())
        self._of_layers[layer] = _merged(
            torch.cat([before, keys]), torch.cat([counts, torch.ones_like(keys)])
        )

    def collect(self, *, contributes: bool) -> CountedTokens:
        """Find the most frequent tokens; every process must call it.

        Args:
            contributes: False on processes that saw the same tokens as another one.
        """
        mine = self._of_layers if contributes else {}
        keys, counts = (
            torch.cat([self._nothing()[0], *(found[part] for found in mine.values())])
            for part in (0, 1)
        )
        ids, most = self._top(*_merged(*_exchanged(keys, counts)))
        dist.all_reduce(ids)
        ids -= 1
        in_layer = torch.zeros_like(ids)
        for layer, pairs in mine.items():
            in_layer[layer] = _occurrences(*pairs, ids[layer])
        assigned = torch.zeros(self._shape, dtype=torch.int64, device=self._device)
        assigned.view(-1).index_add_(0, keys >> _ID_BITS, counts)
        return CountedTokens(
            ids=ids.to(torch.int32).cpu().numpy(),
            parts=(assigned.to(torch.int32), most.to(torch.int32), in_layer.to(torch.int32)),
        )

    def _nothing(self) -> tuple[Tensor, Tensor]:
        empty = torch.zeros(0, dtype=torch.int64, device=self._device)
        return empty, empty

    def _top(self, keys: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Ids plus 1, and counts, of the most frequent tokens of the experts that are given."""
        tables = [
            torch.zeros(*self._shape, MOST_TOKENS, dtype=torch.int64, device=self._device)
            for _ in range(2)
        ]
        order = counts.argsort(descending=True, stable=True)  # keys are sorted: by id among equals
        order = order[(keys[order] >> _ID_BITS).argsort(stable=True)]
        keys, counts = keys[order], counts[order]
        rows = keys >> _ID_BITS
        place = torch.arange(len(rows), device=self._device) - torch.searchsorted(rows, rows)
        kept = place < MOST_TOKENS
        for table, values in zip(tables, ((keys & _IDS) + 1, counts), strict=True):
            table.view(-1, MOST_TOKENS)[rows[kept], place[kept]] = values[kept]
        return tables[0], tables[1]


def _merged(keys: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Each key once, sorted, with the sum of its counts."""
    unique, places = keys.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    return unique, torch.zeros_like(unique).index_add_(0, places, counts)


def _exchanged(keys: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """What all processes have of the experts that fall to this one."""
    world = dist.get_world_size()
    if world == 1:
        return keys, counts
    owners = (keys >> _ID_BITS) % world
    order = owners.argsort(stable=True)
    sent = owners.bincount(minlength=world)
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent)
    sizes, theirs = sent.tolist(), received.tolist()
    found = []
    for values in (keys[order], counts[order]):
        came = torch.empty(sum(theirs), dtype=values.dtype, device=values.device)
        dist.all_to_all_single(came, values, theirs, sizes)
        found.append(came)
    return found[0], found[1]


def _occurrences(keys: Tensor, counts: Tensor, ids: Tensor) -> Tensor:
    """How often each id of a table occurs among the pairs of a layer."""
    if not len(keys):
        return torch.zeros_like(ids)
    known, totals = _merged(keys & _IDS, counts)
    places = torch.searchsorted(known, ids).clamp(max=len(known) - 1)
    return totals[places] * (known[places] == ids)
