"""The processes of a run: which one this is, what they agree on, and the device they live on.

It knows torch's process groups and not Megatron's.
"""

import os
from typing import Any

import torch
import torch.distributed as dist


def rank() -> int:
    """Number of this process, 0 when it is alone."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))


def size() -> int:
    """Number of processes."""
    if dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1"))


def device() -> torch.device:
    """The device that models of this process live on."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def join(backend: str) -> None:
    """Meet the other processes before a run does, so that they can agree on something.

    Args:
        backend: "gloo" or "nccl".
    """
    if dist.is_initialized():
        return
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    store = lonely_store()
    if store is None:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=store, rank=0, world_size=1)


def lonely_store() -> Any:
    """A store for a process that no launcher started; launched ones find theirs by environment."""
    if dist.is_initialized() or "MASTER_ADDR" in os.environ:
        return None
    return dist.HashStore()  # type: ignore[attr-defined]


def agree_on_text(text: str) -> str:
    """The text that rank 0 gives, on every rank; after `join`."""
    length = torch.tensor([len(text.encode())], device=device())
    dist.broadcast(length, src=0)
    letters = torch.zeros(int(length), dtype=torch.uint8, device=device())
    if dist.get_rank() == 0:
        letters.copy_(torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8))
    dist.broadcast(letters, src=0)
    return bytes(letters.cpu().tolist()).decode()


def groups() -> list[dist.ProcessGroup]:
    """The process groups of this process, oldest first."""
    return list(dist.distributed_c10d._world.pg_map)


def leave() -> None:
    """Close the process group. Call it once, at the end of the process."""
    if dist.is_initialized():
        dist.destroy_process_group()
