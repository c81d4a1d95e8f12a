"""Memory of training adapters on experts that are whole, and on experts in four bits (NF4).

A random model in bf16 whose experts dominate trains adapters for a few steps and saves; a second
run resumes from that. Run it from the repository root: `python -m benchmarks.four_bits_memory`.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import checkpoint_memory, machine
from benchmarks.process_memory import Sampler
from benchmarks.ranks import run_ranks

WAYS = ("as_is", "nf4")
"""Values of `adapter.frozen_experts`."""
STEPS = 4
TRAINING: dict[str, Any] = {
    **checkpoint_memory.TRAINING,
    "model.hidden_size": 512,
    "model.num_layers": 6,
    "model.num_attention_heads": 4,
    "moe.expert_hidden_size": 1024,
    "moe.num_experts": 32,
    "moe.top_k": 2,
    "data.vocab_size": 4096,
    "adapter.rank": 4,
    "adapter.targets": ["attention"],
    "training.train_steps": STEPS,
    "checkpoint.save_interval": STEPS,
}
EXPERTS = 6 * 32 * 3 * 512 * 1024
"""Their numbers, in all layers."""
MB = 1e6
HEADER = ("experts", "building MB", "training MB", "saving MB", "loading MB", "training on MB")


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows = []
    for way in WAYS:
        rows.append(_measure(way))
        print(machine.table(HEADER, rows[-1:]).splitlines()[-1], flush=True)
    notes = [
        f"one process; experts of {EXPERTS / 1e6:.0f} M numbers, {2 * EXPERTS / MB:.0f} MB in bf16 "
        f"and {4.5 * EXPERTS / 8 / MB:.0f} MB in four bits; adapters of rank 4 on attention",
        "proportional set size of the process, ten times a second: its peak until the first step "
        "is made (building), in later steps, while saving, and in a run that resumes from "
        "that, until its first step is made (loading) and in later ones",
    ]
    text = machine.heading("Memory of experts in four bits", notes) + "\n"
    machine.write(options.output, text + machine.table(HEADER, rows))


def _measure(way: str) -> list[str]:
    overrides = {**TRAINING, "adapter.frozen_experts": way}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = _peaks(folder / "first", overrides)
        onward = {
            **overrides,
            "checkpoint.load": str(folder / "first" / "checkpoints"),
            "checkpoint.save_interval": None,
            "training.train_steps": 2 * STEPS,
        }
        again = _peaks(folder / "again", onward)
    peaks = [first["begin"], first["train"], first["save"], again["begin"], again["train"]]
    return [way, *(f"{it / MB:.0f}" for it in peaks)]


def _peaks(folder: Path, overrides: dict[str, Any]) -> dict[str, int]:
    task = {"preset": "demo_moe", "gathered": False, "folder": str(folder), "overrides": overrides}
    with Sampler() as sampler:
        begins = run_ranks("benchmarks.memory_rank", task, processes=1)["begins"]
    # Experts are compressed between the beginning of the training and the end of the first step.
    parts = [
        ("begin", at) if number < 2 else (name, at) for number, (name, at) in enumerate(begins)
    ]
    return sampler.peaks(parts)


if __name__ == "__main__":
    main()
