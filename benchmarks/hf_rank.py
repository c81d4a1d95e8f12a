"""One rank of the Hugging Face contender: Mixtral of the demonstration's shape under torch DDP.

Started by ranks.py. Same shape, batch, corpus, optimizer (fused AdamW in fp32, decay on matrices
only), gradient clipping and load balancing loss as the Megatron run; no z-loss, which transformers
does not have, so it computes slightly less.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from transformers import MixtralConfig, MixtralForCausalLM

from benchmarks import ranks
from benchmarks.turns import Turns
from moe_megatron.config import RunConfig, apply_overrides, load_config
from moe_megatron.data.source import resolve_blend
from moe_megatron.mcore.loop.indexed_dataset import open_indexed_dataset


def main() -> None:
    """Run the task of this rank."""
    task = ranks.task()
    config = apply_overrides(load_config("demo_moe"), task["overrides"])
    dist.init_process_group("gloo")
    torch.manual_seed(config.training.seed)
    model = _model(config, task["experts"])
    wrapped: torch.nn.Module = model
    if dist.get_world_size() > 1:
        wrapped = torch.nn.parallel.DistributedDataParallel(
            model, gradient_as_bucket_view=True, find_unused_parameters=False
        )
    result = _train(wrapped, _optimizer(model, config), config, task["precision"])
    if dist.get_rank() == 0:
        result["parameters"] = sum(p.numel() for p in model.parameters())
        ranks.report(result)
    dist.destroy_process_group()


def _model(config: RunConfig, experts: str) -> MixtralForCausalLM:
    model, moe = config.model, config.moe
    shape = MixtralConfig(
        vocab_size=config.data.vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=moe.expert_hidden_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.num_attention_heads,
        max_position_embeddings=config.data.sequence_length,
        num_local_experts=moe.num_experts,
        num_experts_per_tok=moe.top_k,
        output_router_logits=True,
        router_aux_loss_coef=moe.aux_loss_coef,
        tie_word_embeddings=model.tie_embeddings,
        use_cache=False,
        attn_implementation="sdpa",
    )
    shape._experts_implementation = experts
    built = MixtralForCausalLM(shape).train()
    assert built.config._experts_implementation == experts
    return built


def _optimizer(model: torch.nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    training = config.training
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": training.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=training.learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        fused=True,
    )


def _train(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, config: RunConfig, precision: str
) -> dict[str, Any]:
    training = config.training
    batches = _batches(config)
    wall, processor, losses = [], [], []
    turns = Turns()
    turns.begin()
    last = (time.perf_counter(), time.process_time())
    for step in range(training.train_steps):
        tokens = next(batches)
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * min(1.0, (step + 1) / training.warmup_steps)
        with _arithmetic(precision):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip_grad)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        now = (time.perf_counter(), time.process_time())
        wall.append(now[0] - last[0])
        processor.append(now[1] - last[1])
        turns.after_step(step + 1)
        last = (time.perf_counter(), time.process_time())
    turns.end()
    total = torch.tensor(processor, dtype=torch.float64)
    dist.all_reduce(total)
    return {"wall": wall, "processor": total.tolist(), "losses": losses}


def _arithmetic(precision: str) -> contextlib.AbstractContextManager[Any]:
    if precision == "bf16":
        return torch.autocast("cpu", torch.bfloat16)
    return contextlib.nullcontext()


def _batches(config: RunConfig) -> Iterator[torch.Tensor]:
    """This rank's part of every global batch, int64 [sequences, length]."""
    length = config.data.sequence_length
    blend = resolve_blend(config.data, open_indexed_dataset, progress=False)
    corpus = np.memmap(f"{blend.prefixes[0]}.bin", dtype=np.uint16, mode="r")
    rank, world = dist.get_rank(), dist.get_world_size()
    number = config.training.global_batch_size // world
    generator = np.random.default_rng(config.training.seed + rank)
    while True:
        starts = generator.integers(0, len(corpus) - length, size=number)
        rows = np.stack([corpus[start : start + length] for start in starts])
        yield torch.from_numpy(rows.astype(np.int64))


if __name__ == "__main__":
    main()
