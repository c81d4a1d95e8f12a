"""Whether the disk can hold so many experts, asked before millions of them are planned.

The executor compares a plan with the disk to the byte; this is a lower bound, from the size of one
expert.
"""

import shutil
from pathlib import Path

from moe_megatron.checkpoint.execute.publish import staging_of
from moe_megatron.errors import CheckpointError
from moe_megatron.platform.disk import size_of_folder


def check_room(destination: Path, num_experts: int, expert_bytes: int) -> None:
    """Refuse a number of experts that the disk of the destination cannot hold.

    Args:
        destination: The folder to write; what an interrupted attempt left beside it counts as free.
        num_experts: Experts of each layer.
        expert_bytes: At least what one expert takes, with its optimizer, in all layers together.

    Raises:
        CheckpointError: They do not fit.
    """
    place = destination.absolute()
    disk = next(it for it in (place, *place.parents) if it.exists())
    free = shutil.disk_usage(disk).free + size_of_folder(staging_of(place))
    needed = num_experts * expert_bytes
    if needed > free:
        raise CheckpointError(
            f"{num_experts:,} experts in each layer take {needed / 1e9:,.2f} GB or more, "
            f"{expert_bytes / 1e9:,.6f} GB for each, and {free / 1e9:,.2f} GB are free on the disk "
            f"of {destination}. Give a smaller number, or a folder on another disk."
        )
