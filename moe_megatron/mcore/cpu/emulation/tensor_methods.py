"""CPU stand-ins for the tensor and module methods that Megatron calls and that need a GPU.

The import hook rewrites `x.cuda(...)` in `megatron.*` into `cuda(x, ...)` of this module. An object
that is neither a tensor nor a module keeps its own method.
"""

from typing import Any

import torch

REWRITTEN = frozenset({"cuda", "type", "pin_memory"})
"""Method names whose calls are rewritten; each has a function of the same name below."""

_CUDA_TYPE_NAMES = {
    "torch.FloatTensor": "torch.cuda.FloatTensor",
    "torch.HalfTensor": "torch.cuda.HalfTensor",
    "torch.BFloat16Tensor": "torch.cuda.BFloat16Tensor",
    "torch.DoubleTensor": "torch.cuda.DoubleTensor",
}


def cuda(receiver: Any, *args: Any, **kwargs: Any) -> Any:
    """Return the tensor or module as it is: it already lives on the only device."""
    if isinstance(receiver, torch.Tensor | torch.nn.Module):
        return receiver
    return receiver.cuda(*args, **kwargs)


def pin_memory(receiver: Any, *args: Any, **kwargs: Any) -> Any:
    """Return the tensor as it is: pinning needs a CUDA driver and serves only copies to a GPU."""
    if isinstance(receiver, torch.Tensor):
        return receiver
    return receiver.pin_memory(*args, **kwargs)


def type(receiver: Any, *args: Any, **kwargs: Any) -> Any:
    """Answer `x.type()` with the CUDA type name, which Megatron's optimizers compare against."""
    if isinstance(receiver, torch.Tensor) and not args and not kwargs:
        name = receiver.type()
        return _CUDA_TYPE_NAMES.get(name, name)
    return receiver.type(*args, **kwargs)
