"""Memory of training, saving and resuming, under several layouts, by us and by Megatron alone.

Random models in bf16 train three steps on mock data and save; a second run resumes from that. The
numbers are of all processes of the run together, pages that they share counted once. Run it from
the repository root: `python -m benchmarks.checkpoint_memory`.
"""

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.process_memory import Sampler
from benchmarks.ranks import run_ranks

SIZES: dict[str, dict[str, Any]] = {
    "small": {"model.hidden_size": 384, "model.num_layers": 8, "moe.expert_hidden_size": 768},
    "large": {"model.hidden_size": 704, "model.num_layers": 8, "moe.expert_hidden_size": 1408},
}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one process": (1, {}),
    "EP2": (2, {"parallel.expert_parallel_size": 2}),
    "TP2": (2, {"parallel.tensor_parallel_size": 2}),
    "DP2": (2, {}),
    "CP2": (2, {"parallel.context_parallel_size": 2}),
}
IN_BACKGROUND = "own shards, in the background"
WAYS: dict[str, dict[str, Any]] = {
    "Megatron alone": {"gathered": True},
    "own shards": {"gathered": False},
    IN_BACKGROUND: {"gathered": False, "checkpoint.async_save": True},
}
STEPS = 3
MADE_UP: dict[str, Any] = {
    "model.num_attention_heads": 4,
    "moe.num_experts": 4,
    "moe.top_k": 2,
    "data.vocab_size": 16384,
}
TRAINING: dict[str, Any] = {
    "data.sequence_length": 128,
    "training.micro_batch_size": 1,
    "training.global_batch_size": 4,
    "training.train_steps": STEPS,
    "training.warmup_steps": 0,
    "training.precision": "bf16",
    "training.eval_interval": None,
    "checkpoint.save_interval": STEPS,
    "parallel.expert_parallel_size": 1,
}
MB = 1e6
HEADER = (
    *("parameters", "layout", "way", "checkpoint MB", "training MB", "saving adds MB"),
    *("of the checkpoint", "resuming adds MB", "of the checkpoint"),
)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument(
        "--checkpoint", type=Path, help="folder of a model to train on, instead of sizes"
    )
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows = []
    for model in [options.checkpoint] if options.checkpoint else options.sizes:
        for layout in options.layouts:
            for way in options.ways:
                if way == IN_BACKGROUND and layout != "EP2":
                    continue  # a copy of what a rank writes, whatever the layout
                rows.append(_measure(model, layout, way))
                print(machine.table(HEADER, rows[-1:]).splitlines()[-1], flush=True)
    notes = [
        "bf16 with fp32 master weights; memory is the proportional set size "
        "of all processes of the run, ten times a second: its peak while training, while saving "
        "(and, in the background, until all is written), and until a resumed run trains on",
        "what a save or resume adds is above the peak of training; 0 if it stays below that",
    ]
    text = machine.heading("Memory of checkpoints", notes) + "\n" + machine.table(HEADER, rows)
    machine.write(options.output, text)


def _measure(model: str | Path, layout: str, way: str) -> list[str]:
    processes, parallel = LAYOUTS[layout]
    changes = {key: value for key, value in WAYS[way].items() if key != "gathered"}
    if isinstance(model, Path):
        preset, shape = str(model / "config.yaml"), {"checkpoint.load": str(model.parent)}
    else:
        preset, shape = "demo_moe", {**MADE_UP, **SIZES[model]}
    overrides = {**TRAINING, **shape, **parallel, **changes}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        task = {"preset": preset, "gathered": WAYS[way]["gathered"]}
        saved = {**task, "folder": str(folder / "saved"), "overrides": overrides}
        peaks = _peaks(saved, processes)
        checkpoint = folder / "saved" / "checkpoints" / f"iter_{STEPS:07d}"
        nbytes = sum(path.stat().st_size for path in checkpoint.iterdir() if path.is_file())
        onward = {
            **overrides,
            "checkpoint.load": str(checkpoint.parent),
            "checkpoint.save_interval": None,
            "training.train_steps": STEPS + 1,
        }
        resumed = {**task, "folder": str(folder / "resumed"), "overrides": onward}
        again = _peaks(resumed, processes)
    save = max(peaks["save"], peaks["after"]) - peaks["train"]
    resume = again["start"] - peaks["train"]
    parameters = (nbytes - 2**20) / 14  # weights in bf16 and three states in fp32
    added = [cell for it in (save, resume) for cell in _added(it, nbytes)]
    sizes = [f"{nbytes / MB:.0f}", f"{peaks['train'] / MB:.0f}"]
    return [f"{parameters / 1e6:.0f} M", layout, way, *sizes, *added]


def _peaks(task: Mapping[str, Any], processes: int) -> dict[str, int]:
    with Sampler() as sampler:
        report = run_ranks("benchmarks.memory_rank", task, processes=processes)
    return sampler.peaks(report["begins"])


def _added(nbytes: int, checkpoint: int) -> list[str]:
    more = max(0, nbytes)
    return [f"{more / MB:.0f}", f"{more / checkpoint:.1%}"]


if __name__ == "__main__":
    main()
