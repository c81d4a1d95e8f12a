"""The experts of one MoE layer, and how tokens get to them and back, locally or across processes.

Each expert has parameters of its own and processes its tokens as one block. One stacked parameter
would look tidier, but indexing it makes the backward pass fill a gradient of the whole stack for
every expert, up to 31 times slower on a CPU. Routing is decided elsewhere.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moe_megatron.config.arguments import whole
from moe_megatron.errors import ConfigError
from moe_megatron.experts.exchange import exchange_counts, exchange_rows
from moe_megatron.routing import Routing
from moe_megatron.routing.guard import telling


class ExpertPool(nn.ModuleDict):
    """Experts keyed "0", "1", ..., so that names do not change when some are on other processes.

        pool = ExpertPool(CustomExpert, num_experts=8, hidden_size=64, intermediate_size=128)
        output = pool(hidden, routing)

    Args:
        expert_class: A class of modules from rows to rows (`Expert`), or what builds one from
            `hidden_size` and `intermediate_size`.
        num_experts: Number of experts.
        hidden_size: Features of a row.
        intermediate_size: Inner features of an expert.
        **options: Further arguments of the class.

    Raises:
        ConfigError: A number is below 1, or the class builds no module.
    """

    def __init__(
        self,
        expert_class: Callable[..., nn.Module],
        num_experts: int,
        hidden_size: int,
        intermediate_size: int,
        **options: Any,
    ) -> None:
        number = whole("num_experts", num_experts)
        sizes = whole("hidden_size", hidden_size), whole("intermediate_size", intermediate_size)
        built = {str(e): expert_class(*sizes, **options) for e in range(number)}
        if not isinstance(built["0"], nn.Module):
            raise ConfigError(
                f"expert_class must build a torch.nn.Module, not {type(built['0']).__name__}; give "
                "a class such as moe_megatron.experts.Expert describes."
            )
        super().__init__(built)
        self.num_experts = number
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
        return apply_experts(list(self.values()), rows, counts)

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


def apply_experts(experts: Sequence[nn.Module], rows: Tensor, counts: Tensor) -> Tensor:
    """Apply each expert to its rows.

    Args:
        experts: Those that are here.
        rows: [n, hidden], sorted by expert.
        counts: int64 [experts], the number of rows of each.

    Returns:
        [n, hidden].

    Raises:
        ConfigError: An expert gives another shape than it was given, or leaves the process.
    """
    blocks = torch.split(rows, counts.tolist())
    # With gradients, an expert without tokens runs on zero rows to get a gradient of zeros:
    # optimizers and data parallel wrappers expect every parameter to have one.
    with telling(None, "expert"):
        outputs = [
            expert(block) if len(block) or torch.is_grad_enabled() else block
            for expert, block in zip(experts, blocks, strict=True)
        ]
    for expert, block, output in zip(experts, blocks, outputs, strict=True):
        if output.shape != block.shape:
            raise ConfigError(
                f"the expert {type(expert).__name__} ({type(expert).__module__}) was given rows of "
                f"the shape {list(block.shape)} and returned {list(output.shape)}; forward must "
                "map [n, hidden_size] to the same shape."
            )
    return torch.cat(outputs)
