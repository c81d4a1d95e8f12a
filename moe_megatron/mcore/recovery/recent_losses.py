"""The losses with which the next ones are compared, as a file beside each checkpoint.

recent_losses.json is a list of numbers, oldest first. A run that goes on from the checkpoint judges
its first steps as one that was never interrupted. No file means that none are known. It does not
know what a spike is.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from moe_megatron.errors import CheckpointError
from moe_megatron.files import replace_file
from moe_megatron.reading import read_json

LOSSES_FILE = "recent_losses.json"


def read_losses(checkpoint: Path) -> list[float]:
    """The losses before a checkpoint, oldest first.

    Raises:
        CheckpointError: The file is damaged.
    """
    file = checkpoint / LOSSES_FILE
    try:
        return [float(loss) for loss in read_json(file)]
    except FileNotFoundError:
        return []
    except (OSError, OverflowError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{file} is not a list of losses ({error}). Resume from another checkpoint, or write "
            "[] into it: then the losses of the next steps are collected first."
        ) from error


def write_losses(checkpoint: Path, losses: Iterable[float]) -> None:
    """Write the losses beside a checkpoint."""
    checkpoint.mkdir(parents=True, exist_ok=True)
    replace_file(checkpoint / LOSSES_FILE, [json.dumps(list(losses)).encode()])
