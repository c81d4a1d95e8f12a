"""How much is trained: of the real model, or of a tiny one to see that everything works."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Sizes of all stages."""

    name: str
    model: str
    """In words, for the heading."""
    precision: str
    """Of the methods that are compared; other stages take fp32."""
    length: int
    """Tokens of a row."""
    batch: int
    """Rows of a step."""
    steps: int
    """Of each method."""
    left_out: int
    """First steps whose time does not count."""
    held_out: int
    """Conversations by which a method is judged."""
    calibration: int
    """Conversations that are read to see which experts the task uses."""
    rank: int
    peft_steps: int
    """Steps beside `peft`."""
    trial_steps: int
    """Of each implementation of experts in transformers, to find the fastest."""
    curve_steps: int
    curves: Mapping[str, Any] = field(default_factory=dict)
    """The run of the curves, as differences from its preset."""
    curve_preset: str = "test_tiny"
    curve_text: str | None = None
    """Of the demonstration data; None: Megatron's mock data."""


PROFILES = {
    it.name: it
    for it in (
        Profile(
            name="full",
            model="SmolLM2-135M-Instruct of `examples/tour`, upcycled to 4 experts, top-2 (373 M)",
            precision="bf16",
            length=256,
            batch=4,
            steps=12,
            left_out=2,
            held_out=32,
            calibration=16,
            rank=8,
            peft_steps=10,
            trial_steps=3,
            curve_steps=20,
            curve_preset="demo_moe",
            curve_text="demo:prose",
            curves={
                "data.vocab_size": 512,
                "training.micro_batch_size": 4,
                "training.global_batch_size": 8,
                "parallel.expert_parallel_size": 1,
            },
        ),
        Profile(
            name="tiny",
            model="a random Mixtral of two layers",
            precision="fp32",
            length=512,
            batch=2,
            steps=4,
            left_out=1,
            held_out=4,
            calibration=2,
            rank=2,
            peft_steps=4,
            trial_steps=2,
            curve_steps=3,
        ),
    )
}
