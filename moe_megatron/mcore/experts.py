"""The experts of one process on the CPU: Megatron's, computed together.

`LocalExperts` holds the parameters of `SequentialMLP` under the same names and in the same
checkpoint layout. Each expert still has its own matrix products, which on a CPU are as fast as
grouped ones; all of them, with the SwiGLU and the combine weights, are one autograd function
instead of about sixty operations an expert.

In bf16 every new shape costs oneDNN a millisecond to compile a kernel for it, and the tokens of an
expert are a new number in every step. There, an expert works on a multiple of `_BF16_ROWS` rows.

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
from moe_megatron.platform.kernels.weighing import weigh, weigh_backward

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
    elementwise work reads it. An expert works on a window that may reach into the rows of those
    behind it; what it writes there is overwritten when their turn comes.
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
        ctx.windows = windows = _windows(counts, _BF16_ROWS if x.dtype == torch.bfloat16 else 1)
        room = max(window.rows.stop for window in windows)
        inner, output = x.new_empty(room, fc1[0].shape[0]), x.new_empty(room, x.shape[1])
        # The next expert overwrites it, and the backward pass makes it again.
        (products,) = _for_any(windows, x, fc2[0].shape[1])
        for window, w1, w2 in zip(windows, fc1, fc2, strict=True):
            at, product = window.rows, products[: window.size]
            torch.mm(_rows(x, at), w1.t(), out=inner[at])
            swiglu(inner[at], product)
            torch.mm(product, w2.t(), out=output[at])
        output = output[: len(x)]
        # Weighing the outputs equals weighing the activations, and they are narrower.
        ctx.save_for_backward(x, probs, inner, output, *weights)
        return weigh(output, probs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        """The gradients of tokens, combine weights and expert weights."""
        x, probs, inner, output, *weights = ctx.saved_tensors
        windows = ctx.windows
        fc1, fc2 = weights[: len(windows)], weights[len(windows) :]
        d_output, d_x = x.new_empty(len(inner), x.shape[1]), x.new_empty(len(inner), x.shape[1])
        d_output[len(x) :].zero_()
        d_probs = weigh_backward(grads[0], output, probs, d_output[: len(x)])
        width = fc2[0].shape[1]
        products, d_products, d_inner = _for_any(windows, x, width, width, 2 * width)
        d_fc1, d_fc2 = [], []
        for window, w1, w2 in zip(windows, fc1, fc2, strict=True):
            at = window.rows
            product, d_product, d_both = (t[: window.size] for t in (products, d_products, d_inner))
            torch.mm(d_output[at], w2, out=d_product)
            swiglu_backward(inner[at], d_product, d_both, product)
            # Rows of other experts must not count here.
            product[window.count :].zero_()
            d_both[window.count :].zero_()
            d_fc2.append(torch.mm(d_output[at].t(), product) if w2.requires_grad else None)
            torch.mm(d_both, w1, out=d_x[at])
            d_fc1.append(torch.mm(d_both.t(), _rows(x, at)) if w1.requires_grad else None)
        return d_x[: len(x)], d_probs, None, *d_fc1, *d_fc2


@dataclasses.dataclass(frozen=True, slots=True)
class _Window:
    """The rows that the matrix products of one expert work on; the first `count` are its own."""

    start: int
    count: int
    size: int

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + self.size)


def _windows(counts: Sequence[int], multiple: int) -> list[_Window]:
    """A window for each expert, of a multiple of so many rows."""
    starts = itertools.accumulate(counts, initial=0)
    return [
        _Window(start, count, -(-count // multiple) * multiple)
        for start, count in zip(starts, counts, strict=False)
    ]


def _rows(x: torch.Tensor, window: slice) -> torch.Tensor:
    """The rows of a window, with zeros where it reaches beyond the last one."""
    missing = window.stop - len(x)
    return x[window] if missing <= 0 else torch.nn.functional.pad(x[window], (0, 0, 0, missing))


def _for_any(
    windows: Sequence[_Window], like: torch.Tensor, *widths: int
) -> Iterator[torch.Tensor]:
    """Memory of several widths for the rows of any one window."""
    size = max(window.size for window in windows)
    return (like.new_empty(size, width) for width in widths)
