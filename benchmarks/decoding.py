"""Decoding of a mixture beside a dense model with as many parameters, in turns, in one process.

    python -m benchmarks.decoding                        # 64 experts, top-8, 1.8 billion, bf16
    python -m benchmarks.decoding --experts 8 --top-k 2 --ffn 4096
    python -m benchmarks.decoding --model my_model

Weights are random, and so are tokens: routing is that of random routers, which send tokens of a
batch to fewer experts than independent choices would.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from moe_megatron.optimization import MoEOptimizer


def main() -> None:
    """Time both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", help="a Hugging Face folder, in place of random weights")
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--ffn", type=int, default=512, help="width of an expert")
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--prompt", type=int, nargs="+", default=[128])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--compiled", action="store_true", help="inductor beside it")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    optimizer = MoEOptimizer()
    mixture = arguments.model or _random(arguments)
    models: dict[str, Any] = {"mixture": mixture}
    if arguments.compiled:
        again = arguments.model or _random(arguments)
        models["inductor"] = optimizer.compile(again, "inductor")
    found = optimizer.benchmark(models, arguments.batch, arguments.prompt, rounds=arguments.rounds)
    shape = arguments.model or (
        f"{arguments.experts} experts of {arguments.ffn}, top-{arguments.top_k}, "
        f"{arguments.layers} layers of {arguments.hidden}, bf16, random weights"
    )
    notes = [f"{shape}; {arguments.threads} threads"]
    text = f"{machine.heading('Decoding', notes)}\n```text\n{found}\n```\n"
    machine.write(arguments.output, text)


def _random(arguments: argparse.Namespace) -> Any:
    """A Qwen3-MoE of random weights."""
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    config = Qwen3MoeConfig(
        vocab_size=32_000,
        hidden_size=arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=128,
        num_experts=arguments.experts,
        num_experts_per_tok=arguments.top_k,
        moe_intermediate_size=arguments.ffn,
        norm_topk_prob=True,
    )
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.bfloat16, trust_remote_code=False
    ).eval()
    model.set_experts_implementation("grouped_mm")
    return model


if __name__ == "__main__":
    main()
