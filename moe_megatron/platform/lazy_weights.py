"""Modules whose weights are in memory only while they run, for models larger than memory.

A model is built inside `weights_left_out`: its buffers are kept, its parameters have shapes but no
storage. `load_while_running` loads the weights of a module before each forward pass and drops them
after it. What the weights are and where they come from is up to the caller.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn


@contextlib.contextmanager
def weights_left_out() -> Iterator[None]:
    """Inside the context, modules are built with parameters without storage (device "meta").

    Not thread-safe: it replaces `torch.nn.Module.register_parameter`.
    """
    original = nn.Module.register_parameter

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        original(module, name, parameter)
        if parameter is not None and parameter.device.type != "meta":
            _empty(module, name, parameter)

    nn.Module.register_parameter = register  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]


def load_while_running(module: nn.Module, load: Callable[[], object]) -> None:
    """Keep the weights of a module in memory only during its forward passes.

    Args:
        module: A module built inside `weights_left_out`.
        load: Loads the weights into the module.
    """

    def before(*_: Any) -> None:
        load()
        check_complete(module)

    def after(*_: Any) -> None:
        drop_weights(module)

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)


def drop_weights(module: nn.Module) -> None:
    """Free the storage of a module's parameters; their shapes stay."""
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                _empty(part, name, parameter)


def make_room(module: nn.Module) -> None:
    """Allocate uninitialized storage for the parameters of a module that have none."""
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None and parameter.device.type == "meta":
                part._parameters[name] = _like(parameter, torch.empty_like(parameter, device="cpu"))


def check_complete(module: nn.Module) -> None:
    """Assert that every parameter of a module has been loaded."""
    left = [name for name, value in module.named_parameters() if value.device.type == "meta"]
    assert not left, f"the weights {', '.join(left[:5])} were not loaded"


def _empty(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    module._parameters[name] = _like(parameter, parameter.detach().to("meta"))


def _like(parameter: nn.Parameter, data: torch.Tensor) -> nn.Parameter:
    new = nn.Parameter(data, requires_grad=parameter.requires_grad)
    new.__dict__.update(parameter.__dict__)  # attributes set by Megatron and transformers
    return new
