"""Attention of the local layer spec over a context group, whose ranks share each sequence.

The sequence is cut into twice as many chunks as there are ranks, and rank r holds chunks r and
2 * size - 1 - r, in Megatron's order, so that causal attention costs every rank the same. Each rank
keeps its queries, gathers all keys and values, and attends with each of its chunks to the sequence
up to the end of that chunk. What attention then is (grouped queries, windows, sinks, latent
attention), it leaves to `LocalAttention`. It has no parameters of its own, so checkpoints move
between context groups of any size.
"""

import copy
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import AttnMaskType

from moe_megatron.errors import ConfigError
from moe_megatron.mcore.layers.local_attention import LocalAttention


class ContextAttention(LocalAttention):
    """`LocalAttention` whose queries are two chunks of a sequence, and its keys all of it."""

    def __init__(
        self,
        config: TransformerConfig,
        *args: Any,
        pg_collection: ProcessGroupCollection | None = None,
        **kwargs: Any,
    ) -> None:
        groups = pg_collection or ProcessGroupCollection.use_mpu_process_groups(["tp", "cp"])
        # Megatron's class refuses a context group, and knows nothing of it.
        whole = copy.copy(config)
        whole.context_parallel_size = 1
        super().__init__(whole, *args, pg_collection=groups, **kwargs)
        self.config = config
        self._group = groups.cp

    def __call__(  # not in `forward`, whose time is that of computing
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """Gather keys and values, and attend; the arguments are those of `LocalAttention`."""
        return super().__call__(query, self._gathered(key), self._gathered(value), *args, **kwargs)

    def forward(  # Megatron's signature
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> torch.Tensor:
        """softmax(scale * Q K^T + causal mask) V for the chunks of this rank.

        Args:
            query: [sequence / ranks, batch, heads, width], this rank's chunks.
            key: [sequence, batch, query groups, width].
            value: [sequence, batch, query groups, value width].
            attention_mask: None; chunks have no other mask than the causal one.
            attn_mask_type: Causal, or None.
            attention_bias: None.
            packed_seq_params: None.

        Returns:
            [sequence / ranks, batch, heads * value width].

        Raises:
            ConfigError: The layer has another mask than the causal one.
        """
        others = (attention_mask, attention_bias, packed_seq_params)
        kind = self.attn_mask_type if attn_mask_type is None else attn_mask_type
        if kind != AttnMaskType.causal or any(other is not None for other in others):
            raise ConfigError(
                f"attention with a mask of kind '{kind.name}', a mask or bias of its own, or "
                f"packed sequences cannot be split by context_parallel_size ({self._group.size()}) "
                "without Transformer Engine, only plain causal attention can; set "
                "context_parallel_size to 1."
            )
        outputs = []
        for chunk, number in zip(query.chunk(2), self._chunks(self._group.rank()), strict=True):
            end = (number + 1) * len(chunk)
            outputs.append(self._attend(chunk, key[:end], value[:end]))
        return torch.cat(outputs)

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attention of queries that end where the keys end."""
        if self.is_plain(query):
            return self.causal(query, key, value)
        hidden = torch.ones(len(query), len(key), dtype=torch.bool, device=query.device)
        hidden = hidden.triu_(len(key) - len(query) + 1)
        return super().forward(query, key, value, hidden, AttnMaskType.causal)

    def _gathered(self, local: torch.Tensor) -> torch.Tensor:
        """The whole sequence, in its order, of which each rank has two chunks."""
        chunks = gather_from_sequence_parallel_region(local, group=self._group).chunk(
            2 * self._group.size()
        )
        held = [number for rank in range(self._group.size()) for number in self._chunks(rank)]
        return torch.cat([chunks[held.index(number)] for number in range(len(held))])

    def _chunks(self, rank: int) -> tuple[int, int]:
        """Numbers of the chunks that a rank holds."""
        return rank, 2 * self._group.size() - 1 - rank
