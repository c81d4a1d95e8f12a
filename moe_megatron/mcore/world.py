"""The processes of a run: rank, world size, device, and agreement between them.

It knows torch's process groups but not Megatron's.
"""

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


def rank() -> int:
    """Rank of this process; 0 when it is alone."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))


def size() -> int:
    """Number of processes."""
    if dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1"))


def device() -> torch.device:
    """The device of this process's models."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def join(backend: str, timeout: timedelta | None = None, store: Any = None) -> None:
    """Initialize the world group before a run does, so that processes can agree on something.

    Args:
        backend: "gloo" or "nccl".
        timeout: How long processes wait for each other; None: as long as torch does.
        store: Where they meet; None: where their launcher says, once in the life of a process.
    """
    if dist.is_initialized():
        return
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    store = single_process_store() if store is None else store
    if store is None:
        dist.init_process_group(backend, timeout=timeout)
    else:
        dist.init_process_group(
            backend, store=store, rank=rank(), world_size=size(), timeout=timeout
        )


def single_process_store() -> Any:
    """A store for a process that no launcher started; None for others, which use MASTER_ADDR."""
    if dist.is_initialized() or "MASTER_ADDR" in os.environ:
        return None
    return dist.HashStore()  # type: ignore[attr-defined]


def agree_on_text(text: str, source: int = 0) -> str:
    """The text of one rank, on every rank; call it after `join`."""
    length = torch.tensor([len(text.encode())], device=device())
    dist.broadcast(length, src=source)
    if not length:
        return ""
    letters = torch.zeros(int(length), dtype=torch.uint8, device=device())
    if dist.get_rank() == source:
        letters.copy_(torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8))
    dist.broadcast(letters, src=source)
    return bytes(letters.cpu().tolist()).decode()


def gather_texts(text: str) -> list[str]:
    """The texts of all ranks, by rank; every rank must call it, after `join`."""
    content = torch.tensor([*text.encode()], dtype=torch.uint8, device=device())
    sizes = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=device())
    sizes[dist.get_rank()] = len(content)
    dist.all_reduce(sizes)
    lengths = sizes.tolist()
    mine = torch.zeros(max(lengths), dtype=torch.uint8, device=device())
    mine[: len(content)] = content
    everybody = [torch.empty_like(mine) for _ in lengths]
    if max(lengths):
        dist.all_gather(everybody, mine)
    return [
        bytes(one[:length].tolist()).decode()
        for one, length in zip(everybody, lengths, strict=True)
    ]


def process_groups() -> list[dist.ProcessGroup]:
    """The process groups of this process, oldest first."""
    return list(dist.distributed_c10d._world.pg_map)


def wait_for_all() -> None:
    """Wait until every process is here."""
    if dist.is_initialized():
        dist.barrier()


def leave() -> None:
    """Close the process group. Call it once, at the end of the process."""
    if dist.is_initialized():
        dist.destroy_process_group()
