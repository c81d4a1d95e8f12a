"""Token losses over an unsplit vocabulary, a few rows at a time.

Megatron's cross entropy passes over all logits about ten times; with a vocabulary of 8192 that was
an eighth of a step of the demonstration model. Here a block of rows stays in the cache from reading
its logits to writing its result. This module knows neither Megatron nor split vocabularies.
"""

from typing import Any

import torch

_BLOCK_BYTES = 2**20
"""Size of one block of fp32 logits, chosen to fit in a core's cache."""


class TokenLosses(torch.autograd.Function):
    """`apply(logits, target) -> losses`: loss = logsumexp(logits) - logits[target], per token."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Compute the losses.

        Args:
            ctx: Autograd's context.
            logits: [..., vocabulary], any floating type. The backward pass overwrites them with
                their gradient.
            target: int64 [...], token ids.

        Returns:
            fp32 [...], in nats.
        """
        rows, tokens = logits.reshape(-1, logits.shape[-1]), target.reshape(-1)
        losses = torch.empty(tokens.shape, dtype=torch.float32)
        for part in _blocks(rows):
            log_probs = torch.log_softmax(rows[part], dim=-1, dtype=torch.float32)
            losses[part] = log_probs.gather(1, tokens[part].unsqueeze(1)).squeeze(1).neg_()
        ctx.save_for_backward(rows, tokens)
        ctx.shape = logits.shape
        return losses.view(target.shape)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        """d_logits = (softmax(logits) - one_hot(target)) * grad, written over the logits."""
        rows, tokens = ctx.saved_tensors
        weights = grads[0].reshape(-1, 1)
        for part in _blocks(rows):
            probs = torch.softmax(rows[part], dim=-1, dtype=torch.float32)
            targets = tokens[part].unsqueeze(1)
            probs.scatter_add_(1, targets, probs.new_full(targets.shape, -1.0))
            rows[part] = probs.mul_(weights[part])
        return rows.view(ctx.shape), None


def _blocks(rows: torch.Tensor) -> list[slice]:
    size = max(1, _BLOCK_BYTES // (4 * rows.shape[1]))
    return [slice(start, start + size) for start in range(0, len(rows), size)]
