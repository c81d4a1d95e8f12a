"""Scripts as users write them, run by a rank that need not import torch and Megatron first."""

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path


def run_as_main(script: Path, words: Sequence[object] = ()) -> None:
    """Do what `python script words` does; for `run_distributed`."""
    sys.argv = [str(script), *map(str, words)]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")


def train_small_demo(corpus: Path, tokenizer: Path) -> None:
    """Make the run folder of `make train`, by a smaller model and on little text."""
    from moe_megatron.config import apply_overrides, load_config
    from moe_megatron.run.start import start

    settings = {
        "data.paths": [str(corpus)],
        "data.tokenizer": str(tokenizer),
        "training.train_steps": 250,
        "training.global_batch_size": 1,
        "checkpoint.save_interval": 125,
        "run_dir": "runs/demo_moe",
    }
    start(apply_overrides(load_config("test_tiny"), settings))
