"""Generates tokens one by one, with a key/value cache.

It uses the model as a function from new tokens to the logits of the last position; it knows neither
layers nor text.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from moe_megatron.config.arguments import real, whole
from moe_megatron.errors import DataError
from moe_megatron.model.attention import KeyValueCache

# Takes new token ids [batch, n], the valid mask [batch, all so far] or None, and the cache;
# returns logits [batch, vocab].
Step = Callable[[Tensor, Tensor | None, KeyValueCache], Tensor]


def continue_tokens(
    step: Step,
    input_ids: Tensor,
    max_new_tokens: int,
    *,
    valid: Tensor | None = None,
    choose: Callable[[Tensor], Tensor] = lambda logits: logits.argmax(dim=-1),
    eos_token_id: int | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Append tokens to each row until it ends or is long enough.

    Args:
        step: The model, as a function to the next logits.
        input_ids: int64 [batch, seq], padded on the left.
        max_new_tokens: Maximum number of tokens to append.
        valid: bool [batch, seq], False for padding.
        choose: Picks tokens, int64 [batch], from logits [batch, vocab].
        eos_token_id: Ends a row, whose remainder is filled with it; None if no token ends a row.
        group: Processes that share the experts; all of them continue until the last one is done.

    Returns:
        int64 [batch, seq + new]: the prompts and their continuations.

    Raises:
        DataError: A row ends in padding.
        ConfigError: `max_new_tokens` is no number of tokens, or `eos_token_id` no token.
    """
    max_new_tokens = whole("max_new_tokens", max_new_tokens, least=0)
    if eos_token_id is not None:
        eos_token_id = whole("eos_token_id", eos_token_id, least=0)
    if valid is not None and not bool(valid[:, -1].all()):
        raise DataError(
            "generate continues every row at its end, but attention_mask ends a row in padding; "
            "pad on the left (tokenizer.padding_side = 'left')."
        )
    cache, new = KeyValueCache(), input_ids
    done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
    for _ in range(max_new_tokens):
        chosen = choose(step(new, valid, cache))
        if eos_token_id is not None:
            chosen = chosen.masked_fill(done, eos_token_id)
            done |= chosen == eos_token_id
        new = chosen.unsqueeze(1)
        input_ids = torch.cat((input_ids, new), dim=1)
        if valid is not None:
            valid = torch.cat((valid, torch.ones_like(new, dtype=torch.bool)), dim=1)
        if _all_done(done, group):
            break
    return input_ids


def sampler(
    temperature: float, top_k: int | None, generator: torch.Generator | None = None
) -> Callable[[Tensor], Tensor]:
    """A function that draws tokens from softmax(logits / temperature) over the top_k logits.

    Args:
        temperature: Divides the logits before sampling; 0 takes the most probable token.
        top_k: Sample only among the k most probable tokens; None samples among all.
        generator: Source of randomness; None for torch's default generator.

    Returns:
        A function from logits [batch, vocab] to tokens, int64 [batch].

    Raises:
        ConfigError: A value is out of range.
    """
    temperature = real("temperature", temperature, example=0)
    top_k = None if top_k is None else whole("top_k", top_k)

    def choose(logits: Tensor) -> Tensor:
        if temperature == 0:
            return logits.argmax(dim=-1)
        best = logits.topk(min(top_k or logits.shape[-1], logits.shape[-1]), dim=-1)
        probs = torch.softmax(best.values.float() / temperature, dim=-1)
        drawn = torch.multinomial(probs, 1, generator=generator)
        return best.indices.gather(1, drawn).squeeze(1)

    return choose


def _all_done(done: Tensor, group: dist.ProcessGroup | None) -> bool:
    if group is None:
        return bool(done.all())
    undone = (~done).sum()
    dist.all_reduce(undone, group=group)
    return not int(undone)
