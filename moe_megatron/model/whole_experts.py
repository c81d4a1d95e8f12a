"""Refuses a model of which this process holds some of the experts, where all are needed."""

import torch.distributed as dist

from moe_megatron.errors import CheckpointError, MoEError


def check_whole(
    group: dist.ProcessGroup | None, then: str, error: type[MoEError] = CheckpointError
) -> None:
    """Refuse experts that are distributed over processes.

    Args:
        group: The model's expert parallel group.
        then: How the advice goes on.
        error: What to raise.

    Raises:
        MoEError: `error`, if there is a group.
    """
    if group is not None:
        raise error(
            "this process holds only its part of the experts; call "
            f"set_expert_parallel_group(None) on all processes{then}."
        )
