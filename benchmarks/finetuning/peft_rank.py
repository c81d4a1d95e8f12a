"""The other side: `peft` on Mixtral of transformers, in a plain loop with torch's AdamW.

Started by ranks.py. It loads the adapter that our side began with, and takes its rows. The loss is
the mean over the tokens that are learned. Rows are padded on the right, so that causal attention
needs no mask, which would cost time.

In bf16 all parameters are bf16, those of adapters too, and the optimizer has those in fp32, which
it rounds after each step: as Megatron does it.
"""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from benchmarks import ranks
from benchmarks.finetuning.our_rank import ADAPTER, rows_file
from benchmarks.turns import Turns

_IGNORED = -100
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    """Run the task of this rank."""
    task = ranks.task()
    dist.init_process_group("gloo")
    turns = Turns()
    turns.begin()  # before it the other side has written nothing yet
    model = _model(task)
    ranks.report(_train(model, task, turns))
    dist.destroy_process_group()


def _model(task: dict[str, Any]) -> torch.nn.Module:
    base = AutoModelForCausalLM.from_pretrained(task["model"], dtype=_DTYPES[task["precision"]])
    base.set_experts_implementation(task["experts"])
    base.config.use_cache = False
    adapted = PeftModel.from_pretrained(
        base,
        Path(task["folder"]) / ADAPTER,
        is_trainable=True,
        autocast_adapter_dtype=False,
    )
    trained: torch.nn.Module = adapted.train()
    return trained


def _train(model: torch.nn.Module, task: dict[str, Any], turns: Turns) -> dict[str, Any]:
    adapters = [it for it in model.parameters() if it.requires_grad]
    parameters = [_in_fp32(it) for it in adapters]
    optimizer = torch.optim.AdamW(
        parameters,
        lr=task["learning_rate"],
        betas=task["betas"],
        eps=task["eps"],
        weight_decay=0.0,
        fused=True,
    )
    wall, processor, losses, rates = [], [], [], []
    begins = [("steps", time.monotonic())]
    last = (time.perf_counter(), time.process_time())
    for step, (tokens, labels) in enumerate(_rows(task), start=1):
        rate = _learning_rate(task, step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        logits = model(input_ids=tokens).logits
        predicted = logits.flatten(0, 1).float()
        loss = cross_entropy(predicted, labels.flatten(), ignore_index=_IGNORED)
        loss.backward()
        _hand_over_gradients(adapters, parameters)
        torch.nn.utils.clip_grad_norm_(parameters, task["clip_grad"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _take_over_values(adapters, parameters)
        losses.append(loss.item())
        rates.append(rate)
        now = (time.perf_counter(), time.process_time())
        wall.append(now[0] - last[0])
        processor.append(now[1] - last[1])
        del logits, predicted, loss  # not held while the other side works
        turns.after_step(step)
        last = (time.perf_counter(), time.process_time())
    begins.append(("end", time.monotonic()))
    turns.end()
    return {
        "wall": wall,
        "processor": processor,
        "losses": losses,
        "learning_rates": rates,
        "begins": begins,
        "trained": sum(it.numel() for it in parameters),
    }


def _in_fp32(adapter: torch.nn.Parameter) -> torch.nn.Parameter:
    """What the optimizer has of a parameter: a copy, unless it is fp32 itself."""
    if adapter.dtype == torch.float32:
        return adapter
    return torch.nn.Parameter(adapter.detach().float())


def _hand_over_gradients(
    adapters: list[torch.nn.Parameter], parameters: list[torch.nn.Parameter]
) -> None:
    for adapter, parameter in zip(adapters, parameters, strict=True):
        if parameter is not adapter and adapter.grad is not None:
            parameter.grad, adapter.grad = adapter.grad.float(), None


@torch.no_grad()
def _take_over_values(
    adapters: list[torch.nn.Parameter], parameters: list[torch.nn.Parameter]
) -> None:
    for adapter, parameter in zip(adapters, parameters, strict=True):
        if parameter is not adapter:
            adapter.copy_(parameter)


def _learning_rate(task: dict[str, Any], step: int) -> float:
    """Megatron's cosine: at the peak in the first step, at the minimum after the last."""
    highest, lowest = task["learning_rate"], task["min_learning_rate"]
    done = (step - 1) / task["decay_steps"]
    return float(lowest + (highest - lowest) * 0.5 * (1 + math.cos(math.pi * done)))


def _rows(task: dict[str, Any]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Tokens of each step, and what is to follow each of them, int64 [rows, length]."""
    for step in range(1, task["steps"] + 1):
        with np.load(rows_file(Path(task["folder"]), step)) as rows:
            learned = torch.from_numpy(rows["loss_mask"]) > 0
            labels = torch.from_numpy(rows["labels"]).masked_fill(~learned, _IGNORED)
            yield torch.from_numpy(rows["tokens"]), labels


if __name__ == "__main__":
    main()
