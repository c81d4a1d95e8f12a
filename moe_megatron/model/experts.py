"""The experts of one MoE layer, and the two walks tokens take to them and back.

Each expert has parameters of its own and gets its tokens as one block. One stacked parameter would
look tidier, but indexing it makes the backward pass fill a gradient of the whole stack for every
expert, up to 31 times slower on a CPU. How tokens were routed is not decided here.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moe_megatron.config import ModelConfig
from moe_megatron.model.exchange import exchange_counts, exchange_rows
from moe_megatron.model.layers import FeedForward
from moe_megatron.routing import Routing


class Experts(nn.ModuleDict):
    """Experts by their number as text: "0", "1", ...; so names stay when some are elsewhere."""

    def __init__(self, config: ModelConfig, num_experts: int, inner_size: int) -> None:
        super().__init__({str(e): FeedForward(config, inner_size) for e in range(num_experts)})
        self.num_experts = num_experts
        self.group: dist.ProcessGroup | None = None
        """The processes that share the experts, each with an equal run of them; None: all here."""

    def forward(self, hidden: Tensor, routing: Routing) -> Tensor:
        """The weighted sum of each token's experts.

        Args:
            hidden: [tokens, hidden].
            routing: Where they go; what was dropped adds nothing.

        Returns:
            [tokens, hidden].
        """
        top_k = routing.indices.shape[1]
        assignments = routing.kept.flatten().nonzero().squeeze(1)
        experts = routing.indices.flatten()[assignments]
        # A stable sort keeps the order of tokens, and with it every rounding, reproducible.
        assignments = assignments[experts.argsort(stable=True)]
        tokens = assignments // top_k
        rows = hidden[tokens]
        if self.group is None:
            outputs = self._run(rows, routing.tokens_per_expert)
        else:
            outputs = self._run_elsewhere(rows, routing.tokens_per_expert, self.group)
        weights = routing.weights.flatten()[assignments].unsqueeze(1)
        weighted = (outputs * weights).to(hidden.dtype)
        return torch.zeros_like(hidden).index_add(0, tokens, weighted)

    def _run(self, rows: Tensor, counts: Tensor) -> Tensor:
        """Apply the experts that are here to rows [n, hidden] sorted by them, counts[e] each."""
        blocks = torch.split(rows, counts.tolist())
        # With gradients, an expert without tokens runs on none and so gets a gradient of zeros:
        # optimizers and data parallel wrappers expect every parameter to have one.
        return torch.cat(
            [
                expert(block) if len(block) or torch.is_grad_enabled() else block
                for expert, block in zip(self.values(), blocks, strict=True)
            ]
        )

    def _run_elsewhere(self, rows: Tensor, counts: Tensor, group: dist.ProcessGroup) -> Tensor:
        """Send the rows to the processes of their experts and bring the results back.

        Sorted by expert they are also sorted by process, as each holds a run of experts. What
        arrives is sorted by sender first, so it is sorted by expert once more.
        """
        sent = counts.view(dist.get_world_size(group), -1)
        received = exchange_counts(sent, group)
        send_sizes, receive_sizes = sent.sum(1).tolist(), received.sum(1).tolist()
        arrived = exchange_rows(rows, send_sizes, receive_sizes, group)
        local = torch.arange(received.shape[1], device=counts.device).repeat(received.shape[0])
        by_expert = local.repeat_interleave(received.flatten()).argsort(stable=True)
        outputs = self._run(arrived[by_expert], received.sum(0))
        back = outputs[by_expert.argsort()]
        return exchange_rows(back, receive_sizes, send_sizes, group)
