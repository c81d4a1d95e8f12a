"""The models whose steps are timed, as configurations; it loads neither torch nor Megatron.

They have the widths of published models and so many layers that weights, gradients and the state of
the optimizer (18 bytes a weight) leave room for activations in 78 GiB. Data is the demonstration
corpus, and the vocabulary is padded to 32,000 words, so that the output projection costs what it
costs a published model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moe_megatron.config import RunConfig, apply_overrides, load_config

STEPS, WARM_UP = 14, 4
"""Steps of a run, and those of them that are left out, in which kernels are compiled."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model and its batch, as differences from a preset."""

    name: str
    preset: str
    changes: Mapping[str, Any]


_ONE_GPU = {
    "parallel.tensor_parallel_size": 1,
    "parallel.pipeline_parallel_size": 1,
    "parallel.expert_parallel_size": 1,
    "training.recompute": "none",
    "data.paths": ["demo"],
    "data.tokenizer": "demo",
    "data.vocab_size": 8192,
    "megatron.make-vocab-size-divisible-by": 32000,
}
_TINY = {"megatron.mock-data": True, "training.micro_batch_size": 2}

SHAPES: Mapping[str, tuple[Shape, ...]] = {
    "gpu": (
        Shape(
            name="Mixtral 8x7B, 2 layers",
            preset="mixtral_8x7b",
            changes={
                **_ONE_GPU,
                "model.num_layers": 2,
                "training.micro_batch_size": 2,
                "training.global_batch_size": 16,
            },
        ),
        Shape(
            name="128 experts (Qwen3 30B-A3B), 4 layers",
            preset="qwen3_30b_a3b",
            changes={
                **_ONE_GPU,
                "model.num_layers": 4,
                "training.micro_batch_size": 4,
                "training.global_batch_size": 16,
            },
        ),
    ),
    "tiny": (
        Shape(name="8 experts", preset="test_tiny", changes={**_TINY, "moe.num_experts": 8}),
        Shape(
            name="128 experts",
            preset="test_tiny",
            changes={**_TINY, "moe.num_experts": 128},
        ),
    ),
}

ROUTINGS: Mapping[str, Mapping[str, Any]] = {
    "forced routing": {"megatron.moe-router-force-load-balancing": True},
    "real routing": {},
}
"""Forced: Megatron replaces the gate's logits by random ones, which loads experts evenly."""

PRECISIONS: Mapping[str, Mapping[str, Any]] = {
    "fp32": {"training.precision": "fp32"},
    "bf16": {"training.precision": "bf16"},
    "fp8": {"training.precision": "fp8", "megatron.fp8-recipe": "tensorwise"},
}


def configuration(shape: Shape, routing: str, precision: str, run_dir: str) -> RunConfig:
    """The run that times a shape.

    Args:
        shape: Of `SHAPES`.
        routing: Key of `ROUTINGS`.
        precision: Key of `PRECISIONS`.
        run_dir: Folder of the run.
    """
    return apply_overrides(
        load_config(shape.preset),
        {
            **shape.changes,
            **ROUTINGS[routing],
            **PRECISIONS[precision],
            "training.train_steps": STEPS,
            "training.warmup_steps": 0,
            "training.eval_interval": None,
            "checkpoint.save_interval": None,
            "telemetry.console": False,
            "telemetry.history": False,
            "run_dir": run_dir,
        },
    )
