"""Checks the inputs of the model, and computes the loss over its labels.

Without the checks, a mistake would show as an index error deep in a layer, or not at all.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from moe_megatron.errors import DataError

IGNORED_LABEL = -100
"""Label of a position that does not count in the loss, as in Hugging Face models."""


def check_tokens(input_ids: Any, vocab_size: int, max_length: int | None) -> None:
    """Refuse token ids that the embedding table cannot look up.

    Args:
        input_ids: Must be integers [batch, seq].
        vocab_size: Number of rows of the table.
        max_length: Number of positions of the model; None for no limit.

    Raises:
        DataError: Shape, dtype, length or (checked on the CPU only) ids are wrong.
    """
    if not isinstance(input_ids, Tensor):
        text = isinstance(input_ids, str) or (
            isinstance(input_ids, list | tuple) and any(isinstance(it, str) for it in input_ids)
        )
        remedy = "text goes to generate_text" if text else "make one with torch.tensor([[1, 2, 3]])"
        raise DataError(
            "input_ids must be a tensor of whole numbers of shape [batch, seq], not "
            f"{type(input_ids).__name__}; {remedy}."
        )
    if input_ids.dim() != 2 or not _whole_numbers(input_ids) or not input_ids.numel():
        raise DataError(
            "input_ids must be whole numbers of shape [batch, seq] with at least one token, not "
            f"{input_ids.dtype} of shape {list(input_ids.shape)}; add a missing batch axis with "
            "input_ids[None]."
        )
    if max_length is not None and input_ids.shape[1] > max_length:
        raise DataError(
            f"{input_ids.shape[1]} tokens exceed model.max_position_embeddings ({max_length}), the "
            "number of positions that this model has learned; shorten the input."
        )
    # On a GPU the check would force the host to wait for the device.
    if input_ids.device.type != "cpu":
        return
    low, high = int(input_ids.min()), int(input_ids.max())
    if low < 0 or high >= vocab_size:
        raise DataError(
            f"input_ids hold {low if low < 0 else high}, but this model has ids 0 to "
            f"{vocab_size - 1}; use the tokenizer it was made for, or a larger vocab_size."
        )


def check_same_shape(name: str, given: Any, input_ids: Tensor) -> None:
    """Refuse a mask or labels whose shape is not that of the tokens.

    Raises:
        DataError: It is no tensor, or the shapes differ.
    """
    if not isinstance(given, Tensor):
        raise DataError(
            f"{name} must be a tensor of the shape of input_ids, {list(input_ids.shape)}, not "
            f"{type(given).__name__}; make one with torch.tensor(...)."
        )
    if given.shape != input_ids.shape:
        raise DataError(
            f"{name} must have the shape of input_ids, {list(input_ids.shape)}, not "
            f"{list(given.shape)}; pad both alike."
        )


def check_labels(labels: Any, input_ids: Tensor, vocab_size: int) -> None:
    """Refuse labels that are not the ids of tokens, one for each position.

    Raises:
        DataError: Kind, shape, dtype or (checked on the CPU only) ids are wrong.
    """
    check_same_shape("labels", labels, input_ids)
    if not _whole_numbers(labels):
        raise DataError(f"labels must be ids of tokens, not {labels.dtype}; give labels.long().")
    if labels.device.type != "cpu":
        return
    wrong = labels[(labels != IGNORED_LABEL) & ((labels < 0) | (labels >= vocab_size))]
    if wrong.numel():
        raise DataError(
            f"labels hold {int(wrong[0])}, but this model has ids 0 to {vocab_size - 1}; give "
            f"input_ids themselves, and {IGNORED_LABEL} where nothing is to be predicted."
        )


def check_of_rows(what: str, ids: Any, input_ids: Tensor) -> None:
    """Refuse domains or tasks that are not a whole number for each row of tokens; None is fine.

    Args:
        what: "domain" or "task".
        ids: What is given.
        input_ids: [batch, seq].

    Raises:
        DataError: Kind, shape or dtype is wrong.
    """
    if ids is None:
        return
    rows = len(input_ids)
    given = type(ids).__name__
    if isinstance(ids, Tensor):
        given = f"{ids.dtype} of shape {list(ids.shape)}"
        if ids.shape == (rows,) and _whole_numbers(ids):
            return
    raise DataError(
        f"{what}_ids must be a whole number for each of the {rows} rows of input_ids, and -1 where "
        f"its {what} is not known, not {given}; make them with torch.tensor([0, 1])."
    )


def check_positions(position_ids: Any, input_ids: Tensor) -> None:
    """Refuse positions that are not those of samples one after another; None is fine.

    Raises:
        DataError: Kind, shape, dtype or (checked on the CPU only) values are wrong.
    """
    if position_ids is None:
        return
    check_same_shape("position_ids", position_ids, input_ids)
    good = _whole_numbers(position_ids)
    if good and position_ids.device.type == "cpu":
        later, before = position_ids[:, 1:], position_ids[:, :-1]
        good = bool(
            (position_ids[:, 0] == 0).all() and ((later == before + 1) | (later == 0)).all()
        )
    if not good:
        raise DataError(
            "position_ids must be whole numbers that begin at 0 and count up to the end of each "
            "sample, such as [[0, 1, 2, 0, 1]]; leave them out if a row is one sample."
        )


def _whole_numbers(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool)


def valid_tokens(attention_mask: Tensor | None, input_ids: Tensor) -> Tensor | None:
    """The mask as bool [batch, seq], True for tokens; None if there is none.

    Raises:
        DataError: It is no tensor, or its shape is not that of the tokens.
    """
    if attention_mask is None:
        return None
    check_same_shape("attention_mask", attention_mask, input_ids)
    return attention_mask.bool()


def next_token_loss(logits: Tensor, labels: Tensor, valid: Tensor | None) -> Tensor:
    """L = mean over t of -ln p(token[t + 1] | tokens up to t), in nats; 0 if there is no target.

    Args:
        logits: [batch, seq, vocab].
        labels: int64 [batch, seq], the tokens themselves: they are shifted by one here.
            `IGNORED_LABEL` excludes a position.
        valid: bool [batch, seq], False for padding, which is neither a target nor a source.
    """
    targets = labels[:, 1:]
    if valid is not None:
        targets = targets.masked_fill(~(valid[:, 1:] & valid[:, :-1]), IGNORED_LABEL)
    total = functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(),
        targets.flatten(),
        ignore_index=IGNORED_LABEL,
        reduction="sum",
    )
    return total / torch.clamp((targets != IGNORED_LABEL).sum(), min=1)
