"""The quick start of the README, with other first weights and coefficients: do its routers balance?

Every setting trains README's model on README's texts with several seeds, in one process. Imbalance
is that of the most imbalanced layer, the fullest expert's load over the mean, averaged over the
last ten steps; with 8 experts and top-2 it can be 4 at most. Run it from the repository root:
`python -m benchmarks.quick_start`.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import machine

_LAST = 10


def main() -> None:
    """Train every setting with every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--init-std", type=float, nargs="+", default=[0.02, 0.05])
    parser.add_argument("--aux-loss-coef", type=float, nargs="+", default=[0.01, 0.02])
    parser.add_argument("--z-loss-coef", type=float, nargs="+", default=[0.01])
    parser.add_argument("--steps", type=int, nargs="+", default=[30])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="quick-start-") as folder:
        for steps in options.steps:
            for std in options.init_std:
                for aux in options.aux_loss_coef:
                    for z in options.z_loss_coef:
                        found = [
                            _train(seed, std, aux, z, steps, Path(folder))
                            for seed in range(1, options.seeds + 1)
                        ]
                        rows.append([str(steps), f"{std:g}", f"{aux:g}", f"{z:g}", *_cells(found)])
    notes = [
        f"README's quick start, seeds 1 to {options.seeds}; mean over seeds (smallest to largest)",
        f"imbalance: of the most imbalanced layer, mean of the last {_LAST} steps; 1 is even, 4 "
        "the worst that 8 experts with two a token can have",
    ]
    header = ["steps", "init_std", "aux loss", "z-loss", "imbalance", "training loss"]
    text = machine.heading("What balances the quick start", notes)
    machine.write(options.output, text + "\n" + machine.table(header, rows))


def _train(
    seed: int, std: float, aux: float, z: float, steps: int, folder: Path
) -> tuple[float, float]:
    """Imbalance and training loss at the end."""
    import torch

    from moe_megatron import MoEModel, MoETrainer
    from moe_megatron.telemetry.sinks.jsonl import read_routing

    texts = [f"{a} + {b} = {a + b}" for a in range(100) for b in range(100)]
    torch.manual_seed(seed)
    model = MoEModel(
        hidden_size=128, num_experts=8, experts_per_token=2, num_layers=2, init_std=std
    )
    trainer = MoETrainer(
        model,
        router_z_loss_coef=z,
        aux_loss_coef=aux,
        run_dir=folder / "run",
        overrides={"training.seed": seed, "telemetry.console": False},
    )
    result = trainer.train(texts, num_epochs=8, max_steps=steps)
    snapshots = [*read_routing(result.run_dir / "routing.jsonl")][-_LAST:]
    losses = [loss for loss in result.losses[-_LAST:] if loss is not None]
    imbalance = statistics.mean(float(snapshot.imbalance.max()) for snapshot in snapshots)
    return imbalance, statistics.mean(losses)


def _cells(found: Sequence[tuple[float, float]]) -> list[str]:
    cells = []
    for values in zip(*found, strict=True):
        mean, low, high = statistics.mean(values), min(values), max(values)
        cells.append(f"{mean:.2f} ({low:.2f} to {high:.2f})")
    return cells


if __name__ == "__main__":
    main()
