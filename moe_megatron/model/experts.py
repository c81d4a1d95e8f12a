"""The experts of one MoE layer, and how tokens get to them and back, locally or across processes.

Each expert has parameters of its own and processes its tokens as one block. One stacked parameter
would look tidier, but indexing it makes the backward pass fill a gradient of the whole stack for
every expert, up to 31 times slower on a CPU. Routing is decided elsewhere.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moe_megatron.config import ModelConfig
from moe_megatron.model.exchange import exchange_counts, exchange_rows
from moe_megatron.model.layers import FeedForward
from moe_megatron.routing import Routing


class Experts(nn.ModuleDict):
    """Experts keyed "0", "1", ..., so that names do not change when some are on other processes."""

    def __init__(
        self, config: ModelConfig, num_experts: int, inner_size: int, dropout: float = 0.0
    ) -> None:
        super().__init__(
            {str(e): FeedForward(config, inner_size, dropout) for e in range(num_experts)}
        )
        self.num_experts = num_experts
        self.process_group: dist.ProcessGroup | None = None
        """The processes that share the experts, in equal consecutive parts; None: all are here."""

    def forward(self, hidden: Tensor, routing: Routing) -> Tensor:
        """y_t = sum over the experts e of token t of weight[t, e] * expert_e(x_t).

        Args:
            hidden: [tokens, hidden].
            routing: The experts of each token; dropped assignments contribute nothing.

        Returns:
            [tokens, hidden].
        """
        top_k = routing.indices.shape[1]
        assignments = routing.kept.flatten().nonzero().squeeze(1)
        experts = routing.indices.flatten()[assignments]
        # A stable sort keeps the order of tokens, and so all rounding, reproducible.
        assignments = assignments[experts.argsort(stable=True)]
        tokens = assignments // top_k
        rows = hidden[tokens]
        if self.process_group is None:
            outputs = self._run(rows, routing.tokens_per_expert)
        else:
            outputs = self._run_elsewhere(rows, routing.tokens_per_expert, self.process_group)
        weights = routing.weights.flatten()[assignments].unsqueeze(1)
        weighted = (outputs * weights).to(hidden.dtype)
        return torch.zeros_like(hidden).index_add(0, tokens, weighted)

    def _run(self, rows: Tensor, counts: Tensor) -> Tensor:
        """Apply the local experts to rows [n, hidden], sorted by expert, counts[e] rows each."""
        blocks = torch.split(rows, counts.tolist())
        # With gradients, an expert without tokens runs on zero rows to get a gradient of zeros:
        # optimizers and data parallel wrappers expect every parameter to have one.
        return torch.cat(
            [
                expert(block) if len(block) or torch.is_grad_enabled() else block
                for expert, block in zip(self.values(), blocks, strict=True)
            ]
        )

    def _run_elsewhere(self, rows: Tensor, counts: Tensor, group: dist.ProcessGroup) -> Tensor:
        """Send the rows to the processes of their experts and bring the results back.

        Rows sorted by expert are also sorted by process, as each process holds consecutive experts.
        The rows that arrive are sorted by sender first, so they are sorted by expert once more.
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
