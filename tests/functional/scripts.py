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
