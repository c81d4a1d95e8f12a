"""The other side: `peft` on Mixtral of transformers, in a plain loop with torch's AdamW.

Started by ranks.py. It loads the adapter that our side began with, and takes its rows. The loss is
the mean over the tokens that are learned. Rows are padded on the right, so that causal attention
needs no mask, which would cost time.
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
    base = AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32)
    base.set_experts_implementation(task["experts"])
    base.config.use_cache = False
    adapted = PeftModel.from_pretrained(base, Path(task["folder"]) / ADAPTER, is_trainable=True)
    trained: torch.nn.Module = adapted.train()
    return trained


def _train(model: torch.nn.Module, task: dict[str, Any], turns: Turns) -> dict[str, Any]:
    parameters = [it for it in model.parameters() if it.requires_grad]
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
        loss = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=_IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, task["clip_grad"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        rates.append(rate)
        now = (time.perf_counter(), time.process_time())
        wall.append(now[0] - last[0])
        processor.append(now[1] - last[1])
        del logits, loss  # not held while the other side works
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
