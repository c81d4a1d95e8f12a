"""The experts of one process on the CPU: Megatron's, computed together.

`LocalExperts` holds the parameters of `SequentialMLP` under the same names and in the same
checkpoint layout. Each expert still has its own matrix products, which on a CPU are as fast as
grouped ones; all of them, with the SwiGLU and the combine weights, are one autograd function
instead of about sixty operations an expert.

In bf16 every new shape costs oneDNN a millisecond to compile a kernel for it, and the tokens of an
expert are a new number in every step. There, tokens are padded to a multiple of `_BF16_ROWS`.

Every expert draws its initial weights from a seed of its own, so that a model starts the same
however its experts are split over processes.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP

from moe_megatron.platform.kernels.swiglu import swiglu, swiglu_backward

_BF16_ROWS = 32


class LocalExperts(SequentialMLP):
    """`SequentialMLP` with a faster path for plain SwiGLU experts."""

    def __init__(
        self,
        num_local_experts: int,
        config: TransformerConfig,
        submodules: MLPSubmodules,
        pg_collection: ProcessGroupCollection,
        name: str | None = None,
    ) -> None:
        if config.add_bias_linear:
            submodules = dataclasses.replace(submodules, linear_fc2=_OwnOutput)
        if config.use_cpu_initialization:
            first_expert = pg_collection.ep.rank() * num_local_experts
            submodules = _drawn_from_own_seeds(submodules, first_expert)
        super().__init__(num_local_experts, config, submodules, pg_collection, name)

    def forward(
        self,
        permuted_local_hidden_states: torch.Tensor,
        tokens_per_expert: torch.Tensor,
        permuted_probs: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run every token through its expert.

        Args:
            permuted_local_hidden_states: [tokens, hidden], sorted by expert.
            tokens_per_expert: int64 [experts] of this process.
            permuted_probs: [tokens] combine weights.

        Returns:
            [tokens, hidden] weighted outputs, and no bias.
        """
        if not self._is_plain(permuted_local_hidden_states):
            return super().forward(  # type: ignore[no-any-return]
                permuted_local_hidden_states, tokens_per_expert, permuted_probs
            )
        weights = [expert.linear_fc1.weight for expert in self.local_experts]
        weights += [expert.linear_fc2.weight for expert in self.local_experts]
        output = _SwiGluExperts.apply(
            permuted_local_hidden_states, permuted_probs, tokens_per_expert.tolist(), *weights
        )
        return output, None

    def _is_plain(self, hidden_states: torch.Tensor) -> bool:
        """Whether the experts are what the fast path computes; adapters and hooks are not."""
        config = self.config
        return (
            hidden_states.device.type == "cpu"
            and config.gated_linear_unit
            and config.activation_func is torch.nn.functional.silu
            and config.activation_func_clamp_value is None
            and config.glu_linear_offset == 0
            and not config.add_bias_linear
            and not config.moe_apply_probs_on_input
            and self.tp_group.size() == 1
            and all(_is_plain_expert(expert) for expert in self.local_experts)
        )


class _OwnOutput(RowParallelLinear):
    """`RowParallelLinear` whose output may be changed in place, as experts do to add their bias.

    Megatron's is a view that its communication returns, and autograd refuses such a change.
    """

    def forward(self, input_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As the class above; [tokens, width] to [tokens, hidden]."""
        output, bias = super().forward(input_)
        return output.clone(), bias


def _drawn_from_own_seeds(submodules: MLPSubmodules, first_expert: int) -> MLPSubmodules:
    """Builders that draw the weights of each expert from a seed of its own.

    On the CPU Megatron draws weights from the default generator, which every process starts from
    the same seed: without this, the experts of one process would be copies of those of another.

    Args:
        submodules: Builders of the two linear layers; called once an expert, in order.
        first_expert: Global number of the first expert that is built.
    """
    # The same number in all processes that share the layer.
    seed = int(torch.randint(2**48, ()))

    def seeded(build: Callable[..., Any], matrix: int) -> Callable[..., Any]:
        experts = itertools.count(first_expert)

        def build_next(*args: Any, **kwargs: Any) -> Any:
            with torch.random.fork_rng(devices=()):
                torch.default_generator.manual_seed(seed + 2 * next(experts) + matrix)
                return build(*args, **kwargs)

        return build_next

    return dataclasses.replace(
        submodules,
        linear_fc1=seeded(submodules.linear_fc1, 0),
        linear_fc2=seeded(submodules.linear_fc2, 1),
    )


def _is_plain_expert(expert: torch.nn.Module) -> bool:
    return (
        type(expert) is MLP
        and type(expert.linear_fc1) is ColumnParallelLinear
        and type(expert.linear_fc2) is RowParallelLinear
        and not any(
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
            for module in expert.modules()
        )
    )


class _SwiGluExperts(torch.autograd.Function):
    """`apply(x, probs, counts, *fc1, *fc2)`: prob * fc2(silu(gate) * up), gate and up from fc1.

    One expert after the other, so that what a matrix product wrote is still in the cache when the
    elementwise work reads it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        probs: torch.Tensor,
        counts: Sequence[int],
        *weights: torch.Tensor,
    ) -> torch.Tensor:
        """Run the tokens of each expert, [tokens, hidden] -> [tokens, hidden]."""
        fc1, fc2 = weights[: len(counts)], weights[len(counts) :]
        ctx.layout = layout = _Layout(counts, _BF16_ROWS if x.dtype == torch.bfloat16 else 1)
        x = layout.pad(x)
        inner = x.new_empty(len(x), fc1[0].shape[0])
        # The next expert overwrites it, and the backward pass makes it again.
        products = layout.room(x, fc2[0].shape[1])
        output = torch.empty_like(x)
        for (rows, both, out), w1, w2 in zip(layout.split(x, inner, output), fc1, fc2, strict=True):
            product = products[: len(rows)]
            torch.mm(rows, w1.t(), out=both)
            swiglu(both, product)
            torch.mm(product, w2.t(), out=out)
        output = layout.unpad(output)
        # Weighing the outputs equals weighing the activations, and they are narrower.
        ctx.save_for_backward(x, probs, inner, output, *weights)
        return output * _column(probs, x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        """The gradients of tokens, combine weights and expert weights."""
        x, probs, inner, output, *weights = ctx.saved_tensors
        layout = ctx.layout
        fc1, fc2 = weights[: layout.experts], weights[layout.experts :]
        d_probs = (grads[0] * output).sum(dim=-1, dtype=torch.float32)
        grad = layout.pad(grads[0] * _column(probs, x))
        d_x = torch.empty_like(x)
        width = fc2[0].shape[1]
        products, d_products, d_inner = (layout.room(x, n) for n in (width, width, 2 * width))
        d_fc1, d_fc2 = [], []
        for (rows, both, d_out, d_rows), w1, w2 in zip(
            layout.split(x, inner, grad, d_x), fc1, fc2, strict=True
        ):
            product, d_product, d_both = (t[: len(rows)] for t in (products, d_products, d_inner))
            torch.mm(d_out, w2, out=d_product)
            swiglu_backward(both, d_product, d_both, product)
            d_fc2.append(torch.mm(d_out.t(), product) if w2.requires_grad else None)
            torch.mm(d_both, w1, out=d_rows)
            d_fc1.append(torch.mm(d_both.t(), rows) if w1.requires_grad else None)
        return layout.unpad(d_x), d_probs.to(probs.dtype), None, *d_fc1, *d_fc2


class _Layout:
    """Where the tokens of each expert lie once padded, by zeros, to a multiple of rows."""

    def __init__(self, counts: Sequence[int], multiple: int) -> None:
        self._counts = list(counts)
        self._padded = [-(-count // multiple) * multiple for count in counts]
        self._sizes = [
            size
            for count, padded in zip(counts, self._padded, strict=True)
            for size in (count, padded - count)
        ]

    @property
    def experts(self) -> int:
        """Their number."""
        return len(self._counts)

    def pad(self, x: torch.Tensor) -> torch.Tensor:
        """Insert zeros behind the rows of each expert."""
        if self._padded == self._counts:
            return x.contiguous()
        gaps = [x.new_zeros(gap, *x.shape[1:]) for gap in self._sizes[1::2]]
        rows = torch.split(x, self._counts)
        return torch.cat([part for pair in zip(rows, gaps, strict=True) for part in pair])

    def room(self, like: torch.Tensor, width: int) -> torch.Tensor:
        """Memory for the padded rows of any one expert."""
        return like.new_empty(max(self._padded), width)

    def split(self, *padded: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
        """The rows of each expert, of several padded tensors."""
        return zip(*(torch.split(x, self._padded) for x in padded), strict=True)

    def unpad(self, x: torch.Tensor) -> torch.Tensor:
        """Take those rows out again."""
        return x if self._padded == self._counts else torch.cat(torch.split(x, self._sizes)[::2])


def _column(probs: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return probs.to(like.dtype).unsqueeze(-1)
