"""The forward step of one microbatch, which Megatron's schedules call: data, model, loss."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from megatron.core import mpu
from megatron.core.rerun_state_machine import get_rerun_state_machine
from megatron.core.utils import get_batch_on_this_cp_rank, get_model_config
from megatron.training import get_args, get_timers

from moe_megatron.mcore.evaluation.answers import Answers
from moe_megatron.mcore.layers.learned_head import learned_losses
from moe_megatron.mcore.layers.learned_tokens import show_learned_tokens
from moe_megatron.mcore.layers.token_ids import show_token_ids
from moe_megatron.mcore.loop.micro_batches import MicroBatchSeeds
from moe_megatron.mcore.loop.packed_batch import PADDING, flattened
from moe_megatron.mcore.loop.stages import reads_samples
from moe_megatron.mcore.loop.task_dataset import TASK
from moe_megatron.mcore.measure.phases import PhaseClock
from moe_megatron.mcore.tuning.preference_loss import PAIRS, LossParts, number_of_pairs

Objective = Callable[[Mapping[str, torch.Tensor], torch.Tensor], LossParts]
"""A loss in place of the mean over tokens: of a micro-batch, and the losses of its tokens."""


def forward_step(
    data_iterator: Iterator[dict[str, torch.Tensor]],
    model: torch.nn.Module,
    *,
    clock: PhaseClock | None = None,
    seeds: MicroBatchSeeds | None = None,
    answers: Answers | None = None,
    objective: Objective | None = None,
) -> tuple[torch.Tensor, Any]:
    """Run one microbatch.

    Args:
        data_iterator: Yields the microbatches of this data parallel rank, or is None on a
            pipeline stage that needs no data.
        model: One model chunk.
        clock: Measures the phase "data".
        seeds: Seeds random numbers, for routers that draw.
        answers: Looks at what the model would have chosen, whose share is reported, too.
        objective: Computes the loss; None: that of the tokens that count.

    Returns:
        The output tensor of this stage, and the function that turns it into the loss.
    """
    timers = get_timers()
    timers("batch-generator", log_level=2).start()
    with nullcontext() if clock is None else clock.measure("data"):
        batch, domains, tasks = _get_batch(data_iterator)
    timers("batch-generator").stop()
    packed = PADDING in batch
    if packed:
        known = {
            name: it for name, it in (("domains", domains), ("tasks", tasks)) if it is not None
        }
        of_tokens = {name: _of_tokens(it, batch["tokens"]) for name, it in known.items()}
        batch = flattened({**batch, **of_tokens}, model)
        domains, tasks = batch.pop("domains", None), batch.pop("tasks", None)
    show_token_ids(batch.get("tokens"), domains, tasks)
    show_learned_tokens(_weight(batch) if packed else None)
    if seeds is not None:
        seeds.begin(model)
    with nullcontext() if answers is None else answers.watched(model):
        output = model(
            batch.get("tokens"),
            batch.get("position_ids"),
            None,
            labels=batch.get("labels"),
            loss_mask=batch.get("loss_mask"),
            **(_of_packed(batch, model, answers) if packed else {}),
        )
    if objective is not None:
        return output, partial(objective, batch)
    labels = batch.get("labels")
    correct = None if answers is None or labels is None else answers.correct(labels)
    return output, partial(_loss, batch.get("loss_mask"), correct=correct)


def _of_packed(
    batch: Mapping[str, Any], model: torch.nn.Module, answers: Answers | None
) -> dict[str, Any]:
    """What the model takes of rows of samples besides what it takes of text.

    Logits are of all tokens where somebody looks at them, and where the output layer first collects
    the hidden states from processes that have a part of the row each.
    """
    named = {name: batch[name] for name in ("padding_mask", "packed_seq_params")}
    if answers is None and not get_model_config(model).sequence_parallel:
        named["output_processor"] = learned_losses
    return named


def _of_tokens(of_samples: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """What is known of samples, [batch], for each of their tokens, [batch, sequence]."""
    return of_samples.to(tokens).unsqueeze(1).expand_as(tokens).contiguous()


def _weight(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What the loss of a micro-batch of rows is divided by: learned tokens, or pairs."""
    return number_of_pairs(batch[PAIRS]) if PAIRS in batch else batch["loss_mask"].sum()


def _get_batch(
    data_iterator: Iterator[dict[str, torch.Tensor]] | None,
) -> tuple[dict[str, Any], torch.Tensor | None, torch.Tensor | None]:
    """A micro-batch, and source and task of each of its samples, where the data has several."""
    if data_iterator is None or not reads_samples():
        return {}, None, None
    # Every tensor parallel rank reads the same memory-mapped index: no broadcast is needed.
    sample = next(data_iterator)
    batch = {
        key: sample[key].to(device=torch.cuda.current_device(), non_blocking=True)
        if torch.cuda.is_available()
        else sample[key]
        for key in ("tokens", "labels", "loss_mask", "position_ids", PADDING, PAIRS)
        if key in sample
    }
    own = get_batch_on_this_cp_rank(
        batch, is_hybrid_cp=False, cp_group=mpu.get_context_parallel_group()
    )
    return own, sample.get("dataset_id"), sample.get(TASK)


def _loss(
    loss_mask: torch.Tensor | None, output: torch.Tensor, correct: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """L = sum(loss_mask * token losses); the number of tokens; and both for Megatron's report.

    Where it is known which tokens the model would have chosen, the report says their number, too.
    """
    assert loss_mask is not None, "the last pipeline stage reads the data"
    losses = output.view(-1).float()
    mask = loss_mask.reshape(-1).float()
    loss = torch.sum(losses * mask)
    if get_args().check_for_nan_in_loss_and_grad:
        get_rerun_state_machine().validate_result(
            result=loss,
            rejection_func=torch.isnan,
            message="found NaN in local forward loss calculation",
            tolerance=0.0,
            fatal=True,
        )
    num_tokens = mask.sum().to(torch.int)
    report = {"lm loss": torch.stack((loss.detach(), num_tokens.float()))}
    if correct is not None:
        right = torch.sum(correct.reshape(-1).float() * mask)
        report["accuracy"] = torch.stack((right, num_tokens.float()))
    return loss, num_tokens, report
