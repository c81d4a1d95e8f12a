"""Counts in every N-th step which experts its tokens choose together, in and across layers.

Where M [T, E] maps the tokens of a micro-batch to the experts of a layer, and B to those of the MoE
layer before, M' M counts the tokens that have both of two experts, and B' M those that go from one
to another. Products of zeros and ones are exact in float32 up to 2^24 tokens. On request it counts
which tokens each expert gets (token_counts.py). It hears of every pass through a router, and knows
neither the router nor what becomes of the counts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from megatron.core import mpu
from torch import Tensor

from moe_megatron.mcore.layers.layer_numbers import number_of
from moe_megatron.mcore.layers.measured_router import MeasuredRouter
from moe_megatron.mcore.layers.token_ids import token_ids_here
from moe_megatron.mcore.measure.reduction import Reduction
from moe_megatron.mcore.measure.token_counts import TokenCounts
from moe_megatron.telemetry.values.routing_sample import RoutingSample, SampleHead, pairs_fit
from moe_megatron.telemetry.values.top_tokens import TopTokens


@dataclass(frozen=True, kw_only=True, slots=True)
class PendingSample:
    """A sample whose reduction is in progress."""

    step: int
    layers: tuple[int, ...]
    sums: Reduction
    """Tokens, pairs, bias and counts of tokens; see `RoutingSampler.collect`."""
    has_bias: bool
    has_pairs: bool
    top_ids: npt.NDArray[np.int32] | None
    """Of the tokens whose counts are summed, [L, E, K]."""

    def get(self) -> RoutingSample:
        """The sample."""
        tokens, pairs, bias, *counts = self.sums.get()
        head = SampleHead(
            step=self.step,
            tokens=int(tokens[0]),
            layers=self.layers,
            num_experts=bias.shape[1],
            expert_bias=bias.astype(np.float32) if self.has_bias else None,
        )
        top = self._top_tokens(*counts) if counts else ()
        if not self.has_pairs:
            return RoutingSample(head=head, together=None, flow=None, tokens=top)
        rows = len(self.layers)
        return RoutingSample(head=head, together=pairs[:rows], flow=pairs[rows:], tokens=top)

    def _top_tokens(
        self,
        assigned: npt.NDArray[np.int32],
        counts: npt.NDArray[np.int32],
        in_layer: npt.NDArray[np.int32],
    ) -> tuple[TopTokens, ...]:
        assert self.top_ids is not None
        tables = zip(self.layers, assigned, self.top_ids, counts, in_layer, strict=True)
        return tuple(
            TopTokens(layer=layer, assigned=all_of, ids=ids, counts=mine, in_layer=of_layer)
            for layer, all_of, ids, mine, of_layer in tables
        )


class RoutingSampler:
    """Samples one run.

    Args:
        model: Model chunks.
        layers: Global 1-based numbers of the model's MoE layers, in order.
        num_experts: E, experts in each.
        interval: Steps from one sample to the next; 0 for none.
        has_bias: Whether routers have a balancing bias.
        replayed: Whether CUDA graphs replay routers, which then tell nobody what they do.
        counts_tokens: Whether it counts which tokens each expert gets.
    """

    def __init__(
        self,
        model: list[Any],
        layers: tuple[int, ...],
        num_experts: int,
        interval: int,
        *,
        has_bias: bool = False,
        replayed: bool = False,
        counts_tokens: bool = False,
    ) -> None:
        self._layers, self._experts, self._interval = layers, num_experts, interval
        self._has_bias = has_bias
        self._has_pairs = pairs_fit(len(layers), num_experts) and not replayed
        self._has_tokens = counts_tokens and not replayed
        self._device = next(model[0].parameters()).device
        self._routers = {
            number_of(module): (chunk, module)
            for chunk, part in enumerate(model)
            for module in part.modules()
            if isinstance(module, MeasuredRouter)
        }
        self._places = self._gather_places() if interval and layers else {}
        self._begin(due=False)

    def _gather_places(self) -> dict[int, tuple[int, int]]:
        """Pipeline stage and model chunk of each MoE layer, known to every rank."""
        places = torch.zeros(2, len(self._layers), dtype=torch.int64, device=self._device)
        for layer, (chunk, _) in self._routers.items():
            places[:, self._layers.index(layer)] = torch.tensor(
                [mpu.get_pipeline_model_parallel_rank(), chunk]
            )
        dist.all_reduce(places, op=dist.ReduceOp.MAX)
        stages, chunks = places.tolist()
        return dict(zip(self._layers, zip(stages, chunks, strict=True), strict=True))

    def on_step_start(self, step: int) -> None:
        """Count in this step, if it is time for a sample."""
        self._begin(due=self._interval > 0 and step % self._interval == 0)

    def discard(self) -> None:
        """Forget what has been counted of this step, which is computed again."""
        self._begin(due=self._due)

    def _begin(self, *, due: bool) -> None:
        self._due = due
        self._seen: dict[int, Tensor] = {}
        """The last map of each layer that the next one of its chunk needs."""
        self._kept: dict[int, list[Tensor]] = {}
        """All maps of a layer, in order, whose neighbour is in another chunk."""
        self._repeated = dict.fromkeys(self._routers, 0)
        """Passes of a layer that will be computed again."""
        shape = (2 * len(self._layers) - 1, self._experts, self._experts)
        size = shape if due and self._has_pairs else (0, 0, 0)
        self._pairs = torch.zeros(size, dtype=torch.int32, device=self._device)
        self._tokens = torch.zeros(1, dtype=torch.int64, device=self._device)
        self._of_tokens: TokenCounts | None = None
        if due and self._has_tokens:
            self._of_tokens = TokenCounts(len(self._layers), self._experts, self._device)
        for layer, (_, router) in self._routers.items():
            router.watch_training = self._watching(layer) if due else None

    def _watching(self, layer: int) -> Callable[[Tensor, Tensor | None], None]:
        return lambda map_TE, padding_T: self._see(layer, map_TE, padding_T)

    def _see(self, layer: int, map_TE: Tensor, padding_T: Tensor | None) -> None:
        """Count a pass of one micro-batch through a router; a pass that is repeated counts once.

        The first one counts, since layers that are computed again are so from the last to the
        first.
        """
        if not torch.is_grad_enabled():
            self._repeated[layer] += 1
        elif self._repeated[layer]:
            self._repeated[layer] -= 1
            return
        with torch.no_grad(), torch.autocast(map_TE.device.type, enabled=False):
            map_TE = map_TE.detach()
            if padding_T is not None:
                map_TE = map_TE & ~padding_T.unsqueeze(-1)
            index = self._layers.index(layer)
            if index == 0:
                self._tokens += len(map_TE) if padding_T is None else (~padding_T).sum()
            if self._has_pairs:
                self._add(index, map_TE, map_TE)
                self._relate(index, layer, map_TE)
            if self._of_tokens is not None:
                self._of_tokens.add(index, map_TE, _ids_of_rows(self._routers[layer][1]))

    def _relate(self, index: int, layer: int, map_TE: Tensor) -> None:
        """Count what goes from the layer before to this one, or keep what that will need."""
        chunk = self._places[layer]
        before, after = (
            self._layers[at] if 0 <= at < len(self._layers) else None
            for at in (index - 1, index + 1)
        )
        if before is not None and self._places[before] == chunk:
            self._add(len(self._layers) + index - 1, self._seen[before], map_TE)
        elif before is not None:
            self._kept.setdefault(layer, []).append(map_TE)
        if after is None:
            return
        if self._places[after] == chunk:
            self._seen[layer] = map_TE
        elif layer not in self._kept or self._kept[layer][-1] is not map_TE:
            self._kept.setdefault(layer, []).append(map_TE)

    def _add(self, row: int, before_TE: Tensor, map_TE: Tensor) -> None:
        counts = before_TE.to(torch.float32).T @ map_TE.to(torch.float32)
        self._pairs[row] += counts.to(torch.int32)

    def _join_stages(self) -> None:
        """Count between layers of two chunks, whose maps of all micro-batches are here by now."""
        group = mpu.get_pipeline_model_parallel_group()
        here = mpu.get_pipeline_model_parallel_rank()
        for index, (before, after) in enumerate(pairwise(self._layers)):
            (first, _), (second, _) = self._places[before], self._places[after]
            if self._places[before] == self._places[after] or here not in (first, second):
                continue
            kept = self._kept.get(before if here == first else after)
            assert kept, f"no pass through layer {before if here == first else after}"
            maps = torch.cat(kept)
            if first != second and here == first:
                dist.send(maps.to(torch.uint8), dist.get_global_rank(group, second), group=group)
                continue
            came = torch.empty_like(maps, dtype=torch.uint8)
            if first == second:
                came = torch.cat(self._kept[before])
                maps = torch.cat(self._kept[after])
            else:
                dist.recv(came, dist.get_global_rank(group, first), group=group)
            self._add(len(self._layers) + index, came, maps)

    def collect(self, step: int, *, contributes: bool) -> PendingSample | None:
        """Start the reduction of a step's sample, if it has one; every rank must call it.

        Args:
            step: The step that ends.
            contributes: False on ranks that saw the same tokens as another one.
        """
        if not self._due:
            return None
        if self._has_pairs:
            self._join_stages()
        pairs, tokens, of_tokens = self._pairs, self._tokens, self._of_tokens
        if not contributes:
            pairs.zero_()
            tokens.zero_()
        top = None if of_tokens is None else of_tokens.collect(contributes=contributes)
        bias = torch.zeros(
            len(self._layers), self._experts, dtype=torch.float32, device=self._device
        )
        if self._has_bias and _is_first_replica():
            for layer, (_, router) in self._routers.items():
                bias[self._layers.index(layer)] = router.expert_bias
        self._begin(due=False)
        return PendingSample(
            step=step,
            layers=self._layers,
            sums=Reduction(tokens, pairs, bias, *(() if top is None else top.parts)),
            has_bias=self._has_bias,
            has_pairs=self._has_pairs,
            top_ids=None if top is None else top.ids,
        )


def _ids_of_rows(router: MeasuredRouter) -> Tensor:
    """The ids of the tokens that a router has just routed, int64 [T]."""
    return token_ids_here(
        sequence_parallel=router.config.sequence_parallel,
        ahead=router.layer_number if router.is_mtp_layer else 0,
    )


def _is_first_replica() -> bool:
    """Whether this rank is the first of those that hold the same routers."""
    first = mpu.get_data_parallel_rank(with_context_parallel=True) == 0
    return bool(first and mpu.get_tensor_model_parallel_rank() == 0)
