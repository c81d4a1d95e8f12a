"""Whether a model can be moved to where a person wants it: a device, a precision."""

from typing import Any

import torch

from moe_megatron.config.checks import join_words
from moe_megatron.errors import ConfigError
from moe_megatron.platform.device import check_cuda

_PRECISIONS = {
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "half": torch.float16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "float": torch.float32,
    "float32": torch.float32,
    "fp64": torch.float64,
}


def check_placement(*given: Any) -> None:
    """Check the arguments of `torch.nn.Module.to`; None says nothing.

    Raises:
        ConfigError: A word names neither a device nor a precision, a precision is given as text,
            or weights cannot have it; or nothing here computes on such a device.
        BackendUnavailableError: The device is not there.
    """
    for it in given:
        if isinstance(it, str):
            _check_word(it)
        if isinstance(it, torch.dtype):
            _check_dtype(it)
        if isinstance(it, str | torch.device) or (isinstance(it, int) and not isinstance(it, bool)):
            device = torch.device(f"cuda:{it}" if isinstance(it, int) else it)
            _check_kind(device)
            if device.type == "cuda":
                check_cuda(f"device '{device}'")


def check_precision(dtype: Any) -> None:
    """Check the `dtype` of a function that loads a model.

    Raises:
        ConfigError: It is no precision of torch.
    """
    if isinstance(dtype, torch.dtype):
        _check_dtype(dtype)
    if dtype is None or isinstance(dtype, torch.dtype):
        return
    named = _PRECISIONS.get(str(dtype))
    raise ConfigError(
        f"dtype must be a precision of torch, not {dtype!r}; give {named or 'torch.bfloat16'}, or "
        "leave it out to keep the saved one."
    )


def _check_dtype(dtype: torch.dtype) -> None:
    if not dtype.is_floating_point:
        raise ConfigError(
            f"weights cannot be {dtype}; give torch.float32, torch.bfloat16 or torch.float16."
        )


def _check_kind(device: torch.device) -> None:
    if device.type not in ("cpu", "cuda", "meta"):
        raise ConfigError(
            f"nothing here computes on device '{device}'; give 'cpu', or 'cuda' for a GPU."
        )


def _check_word(word: str) -> None:
    if word in _PRECISIONS:
        raise ConfigError(f"a precision is given as {_PRECISIONS[word]}, not as {word!r}.")
    try:
        torch.device(word)
    except RuntimeError:
        devices = join_words(["'cpu'", "'cuda'", "'cuda:1'"])
        raise ConfigError(
            f"there is no device {word!r}; give {devices}, or a precision such as torch.bfloat16."
        ) from None
