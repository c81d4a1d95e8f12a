"""The SwiGLU experts of one process on the CPU, computed together.

Each expert has its own matrix products, which on a CPU are as fast as grouped ones. Together with
the SwiGLU and the combine weights they form one autograd function, in place of about sixty
operations per expert.

In bf16, oneDNN takes a millisecond to compile a kernel for every new shape, and the number of
tokens of an expert changes with every step. So in bf16 an expert processes a multiple of
`_BF16_ROWS` rows.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from moe_megatron.mcore.cpu.fast.kernels.swiglu import swiglu, swiglu_backward
from moe_megatron.mcore.cpu.fast.kernels.weighing import weigh, weigh_backward

_BF16_ROWS = 32


class SwiGluExperts(torch.autograd.Function):
    """`apply(x, probs, counts, scales, *fc1, *fc2, *adapters)`: the experts of a process.

    y = prob * (silu(gate) * up) @ fc2.T, and [gate, up] = x @ fc1.T. A matrix W with a scale s
    works as W + s B A, and has A and B among the adapters, in the order of the matrices.

    Experts run one after the other, so that the result of a matrix product is still in the cache
    when the elementwise work reads it. The window of an expert may extend into the rows of the
    experts after it; what it writes there is overwritten by theirs.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        probs: torch.Tensor,
        counts: Sequence[int],
        scales: Sequence[float | None],
        *weights: torch.Tensor,
    ) -> torch.Tensor:
        """Run every token through its expert, [tokens, hidden] -> [tokens, hidden].

        Args:
            ctx: Keeps what the backward pass needs.
            x: [tokens, hidden], sorted by expert.
            probs: [tokens], combine weights.
            counts: Tokens of each expert.
            scales: Of the adapters of all fc1, then of all fc2; None: it has none. Empty: none has.
            weights: All fc1, all fc2, and A [rank, inputs] and B [outputs, rank] of each adapter.
        """
        low1, low2 = _low_rank(len(counts), scales, weights)
        fc1, fc2 = weights[: len(counts)], weights[len(counts) : 2 * len(counts)]
        ctx.scales = scales
        ctx.windows = windows = _windows(counts, _BF16_ROWS if x.dtype == torch.bfloat16 else 1)
        room = max(window.rows.stop for window in windows)
        inner, output = x.new_empty(room, fc1[0].shape[0]), x.new_empty(room, x.shape[1])
        # Every expert overwrites the products of the one before; the backward recomputes them.
        (products,) = _scratch(windows, x, fc2[0].shape[1])
        for window, w1, w2, l1, l2 in zip(windows, fc1, fc2, low1, low2, strict=True):
            at, product = window.rows, products[: window.size]
            own = _rows(x, at)
            torch.mm(own, w1.t(), out=inner[at])
            l1.add_to(inner[at], own)
            swiglu(inner[at], product)
            torch.mm(product, w2.t(), out=output[at])
            l2.add_to(output[at], product)
        output = output[: len(x)]
        # Weighting the outputs equals weighting the activations, which are wider.
        ctx.save_for_backward(x, probs, inner, output, *weights)
        return weigh(output, probs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        """The gradients of tokens, combine weights and expert weights."""
        x, probs, inner, output, *weights = ctx.saved_tensors
        windows = ctx.windows
        low1, low2 = _low_rank(len(windows), ctx.scales, weights)
        fc1, fc2 = weights[: len(windows)], weights[len(windows) : 2 * len(windows)]
        d_output, d_x = x.new_empty(len(inner), x.shape[1]), x.new_empty(len(inner), x.shape[1])
        d_output[len(x) :].zero_()
        d_probs = weigh_backward(grads[0], output, probs, d_output[: len(x)])
        width = fc2[0].shape[1]
        products, d_products, d_inner = _scratch(windows, x, width, width, 2 * width)
        d_fc1, d_fc2, d_low1, d_low2 = [], [], [], []
        for window, w1, w2, l1, l2 in zip(windows, fc1, fc2, low1, low2, strict=True):
            at = window.rows
            product, d_product, d_both = (t[: window.size] for t in (products, d_products, d_inner))
            torch.mm(d_output[at], w2, out=d_product)
            l2.add_back_to(d_product, d_output[at])
            swiglu_backward(inner[at], d_product, d_both, product)
            # Rows of other experts must not contribute to this expert's weight gradients.
            product[window.count :].zero_()
            d_both[window.count :].zero_()
            d_fc2.append(torch.mm(d_output[at].t(), product) if w2.requires_grad else None)
            d_low2 += l2.gradients(d_output[at], product)
            torch.mm(d_both, w1, out=d_x[at])
            l1.add_back_to(d_x[at], d_both)
            own = _rows(x, at)
            d_fc1.append(torch.mm(d_both.t(), own) if w1.requires_grad else None)
            d_low1 += l1.gradients(d_both, own)
        return d_x[: len(x)], d_probs, None, None, *d_fc1, *d_fc2, *d_low1, *d_low2


@dataclasses.dataclass(frozen=True, slots=True)
class _LowRank:
    """What is added to a matrix: s B A, which is never formed; nothing if the scale is None."""

    scale: float | None = None
    tensors: tuple[torch.Tensor, ...] = ()
    """A and B."""

    def add_to(self, outputs: torch.Tensor, inputs: torch.Tensor) -> None:
        """Outputs += s (inputs A^T) B^T."""
        if self.scale is not None:
            a, b = self.tensors
            outputs.addmm_(inputs @ a.t(), b.t(), alpha=self.scale)

    def add_back_to(self, d_inputs: torch.Tensor, d_outputs: torch.Tensor) -> None:
        """The gradient of the inputs += s (d_outputs B) A."""
        if self.scale is not None:
            a, b = self.tensors
            d_inputs.addmm_(d_outputs @ b, a, alpha=self.scale)

    def gradients(self, d_outputs: torch.Tensor, inputs: torch.Tensor) -> list[torch.Tensor | None]:
        """Those of A and B."""
        if self.scale is None:
            return []
        a, b = self.tensors
        of_a = (d_outputs @ b).t() @ inputs if a.requires_grad else None
        of_b = d_outputs.t() @ (inputs @ a.t()) if b.requires_grad else None
        return [None if it is None else it.mul_(self.scale) for it in (of_a, of_b)]


def _low_rank(
    experts: int, scales: Sequence[float | None], weights: Sequence[torch.Tensor]
) -> tuple[list[_LowRank], list[_LowRank]]:
    """The adapters of all first and of all second matrices."""
    adapters = iter(weights[2 * experts :])
    found = [
        _LowRank() if scale is None else _LowRank(scale, (next(adapters), next(adapters)))
        for scale in scales or [None] * (2 * experts)
    ]
    return found[:experts], found[experts:]


@dataclasses.dataclass(frozen=True, slots=True)
class _Window:
    """The rows that the matrix products of one expert process; the first `count` are its own."""

    start: int
    count: int
    size: int

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + self.size)


def _windows(counts: Sequence[int], multiple: int) -> list[_Window]:
    """A window for each expert; its number of rows is a multiple of `multiple`."""
    starts = itertools.accumulate(counts, initial=0)
    return [
        _Window(start, count, -(-count // multiple) * multiple)
        for start, count in zip(starts, counts, strict=False)
    ]


def _rows(x: torch.Tensor, window: slice) -> torch.Tensor:
    """The rows of a window, zero-padded where it extends beyond the last row."""
    missing = window.stop - len(x)
    return x[window] if missing <= 0 else torch.nn.functional.pad(x[window], (0, 0, 0, missing))


def _scratch(
    windows: Sequence[_Window], like: torch.Tensor, *widths: int
) -> Iterator[torch.Tensor]:
    """Scratch memory of each width, large enough for any one window."""
    size = max(window.size for window in windows)
    return (like.new_empty(size, width) for width in widths)
