"""Trains on from a converted checkpoint: weights as transformers starts them, converted, loaded.

Three cases, so that the table says which of them failed. It needs no network.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.gpu_report.results import case, training
from moe_megatron.checkpoint.convert import Execution, import_checkpoint
from moe_megatron.config import CONFIG_FILE, apply_overrides, load_config
from moe_megatron.mcore import world
from moe_megatron.mcore.state.checkpoint import latest_checkpoint
from moe_megatron.run.start import start

FAMILY = "mixtral"
SIZES: Mapping[str, Mapping[str, Any]] = {
    # 0.4 B weights.
    "gpu": {
        "vocab_size": 8192,
        "hidden_size": 1024,
        "intermediate_size": 1792,
        "num_hidden_layers": 8,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
}
_TRAINING = {
    "training.warmup_steps": 0,
    "training.eval_interval": None,
    "training.learning_rate": 1e-3,
    "checkpoint.save_interval": None,
    "telemetry.console": False,
}
RUNS: Mapping[str, Mapping[str, Any]] = {
    "gpu": {
        **_TRAINING,
        "data.paths": ["demo"],
        "data.tokenizer": "demo",
        "data.sequence_length": 1024,
        "training.precision": "bf16",
        "training.train_steps": 30,
        "training.micro_batch_size": 8,
        "training.global_batch_size": 16,
    },
    "tiny": {
        **_TRAINING,
        "megatron.mock-data": True,
        "data.sequence_length": 32,
        "training.precision": "fp32",
        "training.train_steps": 6,
        "training.micro_batch_size": 2,
        "training.global_batch_size": 4,
    },
}


def main() -> None:
    """Write, convert, train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", choices=sorted(SIZES), required=True)
    parser.add_argument("--folder", type=Path, required=True)
    arguments = parser.parse_args()
    folder = arguments.folder
    with case(folder, "random weights") as numbers:
        numbers.update(write_model(arguments.profile, folder / "hf"))
    with case(folder, "conversion") as numbers:
        report = import_checkpoint(
            folder / "hf", folder / "megatron", execution=Execution(progress=False)
        )
        numbers.update(
            gigabytes=report.plan.nbytes / 1e9, gigabytes_per_second=report.gigabytes_per_second
        )
    with case(folder, "training on") as numbers:
        numbers.update(train(arguments.profile, folder / "megatron", folder / "run"))
    world.leave()


def write_model(profile: str, folder: Path) -> dict[str, Any]:
    """Save a model as transformers starts it, in bf16; returns its size."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(FAMILY, **SIZES[profile]))
    model.bfloat16().save_pretrained(folder)
    return {"weights": sum(weight.numel() for weight in model.parameters())}


def train(profile: str, checkpoint: Path, run_dir: Path) -> dict[str, Any]:
    """Train on from the newest checkpoint of a folder; returns the numbers of the run.

    Raises:
        ValueError: The loss did not fall.
    """
    newest = latest_checkpoint(checkpoint)
    assert newest is not None, "the conversion has written one"
    changes = {**RUNS[profile], "checkpoint.load": str(checkpoint), "run_dir": str(run_dir)}
    config = apply_overrides(load_config(newest / CONFIG_FILE), changes)
    numbers = training(start(config, quiet_megatron=False, say=print).history.steps)
    if not numbers["last_loss"] < numbers["first_loss"]:
        raise ValueError(
            f"the loss went from {numbers['first_loss']} to {numbers['last_loss']} and did not fall"
        )
    return numbers


if __name__ == "__main__":
    main()
