"""Experts that are modules of any kind, in Megatron's MoE layer.

`PooledExperts` stands where `SequentialMLP` does: the dispatcher gives it the rows of its experts,
and it gives back their weighted outputs. A parameter has one key in checkpoints for all experts of
a layer, with the number of the expert in the whole model as an axis, so that they load under
another expert parallel size. It knows neither what an expert computes nor how rows get to it.
"""

import hashlib
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.dist_checkpointing.utils import replace_prefix_for_sharding
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.random import (
    get_cuda_rng_tracker,
    get_expert_parallel_rng_tracker_name,
)
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.utils import (
    ensure_metadata_has_dp_cp_group,
    sharded_state_dict_default,
)
from torch import Tensor

from moe_megatron.experts.kinds import ExpertBuilder
from moe_megatron.experts.pool import apply_experts
from moe_megatron.mcore import world
from moe_megatron.mcore.layers.layer_numbers import number_of


class PooledExperts(MegatronModule):
    """The experts of one layer on this rank, one after the other.

    Args:
        num_local_experts: Their number.
        config: Megatron's configuration of the model.
        pg_collection: Process groups; those of experts are used.
        name: Megatron's name for the module; it is not used.
        builder: Builds an expert.
    """

    def __init__(
        self,
        num_local_experts: int,
        config: TransformerConfig,
        pg_collection: ProcessGroupCollection,
        name: str | None = None,
        *,
        builder: ExpertBuilder,
    ) -> None:
        super().__init__(config=config)
        self.num_local_experts = num_local_experts
        self.ep_group, self.dp_group = pg_collection.ep, pg_collection.expt_dp
        self.tp_group = pg_collection.expt_tp
        self._builder = builder
        with torch.random.fork_rng(devices=()):  # what is drawn here is drawn again, by `draw`
            experts = [self._build() for _ in range(num_local_experts)]
        self.local_experts = torch.nn.ModuleList(experts).to(
            device=world.device(), dtype=config.params_dtype
        )
        # Their gradients are summed over the processes that hold the same experts.
        elsewhere = config.expert_model_parallel_size > 1 or (
            config.expert_tensor_parallel_size != config.tensor_model_parallel_size
        )
        for parameter in self.local_experts.parameters():
            parameter.allreduce = not elsewhere  # type: ignore[attr-defined]

    def forward(
        self, rows: Tensor, tokens_per_expert: Tensor, probs: Tensor
    ) -> tuple[Tensor, None]:
        """Run every token through its expert.

        Args:
            rows: [tokens, hidden], sorted by expert.
            tokens_per_expert: int64 [local experts].
            probs: [tokens], combine weights.

        Returns:
            Weighted outputs, [tokens, hidden], and None in place of a bias.
        """
        if self.training:
            # Its own generator on each rank: others hold other experts.
            with get_cuda_rng_tracker().fork(get_expert_parallel_rng_tracker_name()):
                outputs = apply_experts(list(self.local_experts), rows, tokens_per_expert)
        else:
            outputs = apply_experts(list(self.local_experts), rows, tokens_per_expert)
        return (outputs * probs.unsqueeze(-1)).to(rows.dtype), None

    def backward_dw(self) -> None:
        """Gradients of weights are computed in the backward pass itself."""

    @torch.no_grad()
    def draw(self, seed: int, layer: int) -> None:
        """Take the first weights of each expert from its class, whatever the layout is.

        Args:
            seed: Seed of the run.
            layer: Number of the layer in the whole model.
        """
        first = self.ep_group.rank() * self.num_local_experts
        for number, expert in enumerate(self.local_experts, start=first):
            digest = hashlib.sha256(f"{seed}|experts|{layer}|{number}".encode()).digest()
            with torch.random.fork_rng(devices=()):
                torch.default_generator.manual_seed(int.from_bytes(digest[:4]))
                fresh = self._build().state_dict()
            for name, tensor in expert.state_dict().items():
                tensor.copy_(fresh[name])

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[tuple[int, int, int], ...] = (),
        metadata: dict[str, Any] | None = None,
    ) -> ShardedStateDict:  # Megatron's signature
        """Which part of the whole layer's tensors each tensor here is."""
        metadata = ensure_metadata_has_dp_cp_group(metadata)
        total = self.ep_group.size() * self.num_local_experts
        first = self.ep_group.rank() * self.num_local_experts
        single = metadata.get("singleton_local_shards", False)
        found: ShardedStateDict = {}
        for local, expert in enumerate(self.local_experts):
            own, key, offsets = (
                f"{prefix}local_experts.{local}.",
                f"{prefix}experts.",
                sharded_offsets,
            )
            if single:
                key = f"{key}{first + local}."
            else:
                offsets = (*offsets, (len(offsets), first + local, total))
            part = sharded_state_dict_default(
                expert, own, offsets, metadata, tp_group=self.tp_group
            )
            replace_prefix_for_sharding(part, own, key)
            for tensor in part.values():
                tensor.replica_id = (*tensor.replica_id[:2], self.dp_group.rank())
            found.update(part)
        return found

    def _build(self) -> torch.nn.Module:
        return self._builder(self.config.hidden_size, self.config.moe_ffn_hidden_size)


def draw_experts(chunk: torch.nn.Module, seed: int) -> None:
    """Draw the first weights of all such experts of a model chunk."""
    for layer in chunk.modules():
        if isinstance(layer, MoELayer) and isinstance(layer.experts, PooledExperts):
            layer.experts.draw(seed, number_of(layer))
