"""Token losses of the learned tokens alone, where answers are learned and questions are not.

Of a row of conversations often one token in twenty is in the loss. The others need no logits, which
with a large vocabulary take as long as several layers. The function here is an output processor, as
Megatron names it: its model calls it in place of its own output layer and loss.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def learned_losses(
    *,
    hidden_states: Tensor,
    output_layer: Callable[..., tuple[Tensor, Tensor | None]],
    output_weight: Tensor | None,
    labels: Tensor,
    loss_mask: Tensor,
    runtime_gather_output: bool | None,
    compute_language_model_loss: Callable[[Tensor, Tensor], Tensor],
    scale_logits: Callable[[Tensor], Tensor],
    **others: Any,
) -> Tensor:
    """-log p(label) of every token that is in the loss, and 0 of the others.

    Args:
        hidden_states: [T, 1, hidden], all tokens of a micro-batch in one row.
        output_layer: To logits.
        output_weight: Its matrix, where that is the embedding's.
        labels: int64 [1, T].
        loss_mask: [1, T], 0 where a token is not learned.
        runtime_gather_output: As the output layer takes it.
        compute_language_model_loss: From labels [1, L] and logits [L, 1, vocabulary].
        scale_logits: What a model does to its logits.
        others: What else Megatron hands to a processor.

    Returns:
        float [1, T].
    """
    learned_L = torch.nonzero(loss_mask.view(-1)).view(-1)
    if not len(learned_L):
        learned_L = learned_L.new_zeros(1)  # one that does not count: no kernel gets no rows
    logits, _ = output_layer(
        hidden_states.index_select(0, learned_L),
        weight=output_weight,
        runtime_gather_output=runtime_gather_output,
    )
    losses = compute_language_model_loss(labels[:, learned_L], scale_logits(logits))
    return losses.new_zeros(labels.shape).index_copy(1, learned_L, losses)
