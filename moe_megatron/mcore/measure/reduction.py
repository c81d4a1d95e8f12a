"""A sum over all ranks that nobody waits for, and its copy to the host.

It does not know what the tensors hold.
"""

from typing import Any

import numpy.typing as npt
import torch
import torch.distributed as dist


class Reduction:
    """A reduction in progress; every rank must start it, with tensors of the same shapes.

    Args:
        tensors: What is summed, in place.
    """

    def __init__(self, *tensors: torch.Tensor) -> None:
        self._work: list[Any] = []
        if dist.is_initialized() and dist.get_world_size() > 1:
            self._work = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
        self._copied: torch.cuda.Event | None = None
        self._host = tensors
        if tensors[0].is_cuda:
            # With NCCL, wait() blocks only the stream; the copy to pinned memory is queued behind.
            for work in self._work:
                work.wait()
            self._work = []
            self._host = tuple(
                torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(
                    tensor, non_blocking=True
                )
                for tensor in tensors
            )
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def get(self) -> tuple[npt.NDArray[Any], ...]:
        """The sums. One step later they have long arrived, so that nothing waits."""
        for work in self._work:
            work.wait()
        if self._copied is not None:
            self._copied.synchronize()
        return tuple(tensor.numpy() for tensor in self._host)
