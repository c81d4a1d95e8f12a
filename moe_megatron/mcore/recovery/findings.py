"""Finds what in a model is not finite first: which module's output, or which parameter.

Every rank looks at its own part, and all agree on one finding in words: that of the first rank that
has one. It is called only when something is wrong already, and does not know what follows.
"""

from typing import Any

import torch
import torch.distributed as dist

from moe_megatron.mcore import world

_INSIDE_EXPERTS = ".local_experts."


class FirstNonFinite:
    """Watches one forward pass for the first module whose output is not finite.

    Single experts are not watched: their fast path does not run hooks.

    Args:
        model: Model chunks.
    """

    def __init__(self, model: list[Any]) -> None:
        self._found: str | None = None
        self._handles = [
            module.register_forward_hook(self._hook(name))
            for chunk in model
            for name, module in chunk.named_modules()
            if name and _INSIDE_EXPERTS not in name
        ]

    def _hook(self, name: str) -> Any:
        def after(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) and output else output
            if self._found is not None or not isinstance(first, torch.Tensor):
                return
            if first.is_floating_point() and not bool(torch.isfinite(first).all()):
                self._found = f"the output of {_short(name)}"

        return after

    def remove(self) -> str | None:
        """Stop watching; returns what was found on this rank, in words."""
        for handle in self._handles:
            handle.remove()
        return self._found


@torch.no_grad()
def nonfinite_result(model: list[Any], output: str | None = None) -> str:
    """What of a step is not finite, in words that are the same on every rank, which all call it.

    Args:
        model: Model chunks, with finite weights.
        output: What this rank found in a forward pass, if anything.

    Returns:
        The output if there is one, else a parameter with a non-finite gradient.
    """
    named = _named_parameters(model)
    gradient = next((name for name, p in named if not is_finite(gradient_of(p))), None)
    for finding in (output, gradient and f"the gradient of {gradient}"):
        if (agreed := _agree(finding)) is not None:
            return agreed
    return "nothing that is left to see"


def nonfinite_weights(model: list[Any]) -> str | None:
    """Words for the first parameter whose weights are not finite, the same on every rank."""
    named = _named_parameters(model)
    weights = next((name for name, p in named if not is_finite(p)), None)
    return _agree(weights and f"the weights of {weights}")


def _named_parameters(model: list[Any]) -> list[tuple[str, torch.nn.Parameter]]:
    return [(_short(name), p) for chunk in model for name, p in chunk.named_parameters()]


def _agree(finding: str | None) -> str | None:
    """The finding of the first rank that has one, on every rank."""
    none = world.size()
    first = torch.tensor([none if finding is None else world.rank()], device=world.device())
    dist.all_reduce(first, op=dist.ReduceOp.MIN)
    return None if int(first) == none else world.agree_on_text(finding or "", source=int(first))


def _short(name: str) -> str:
    """A parameter's name without the wrappers of mixed precision and data parallelism."""
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name


def gradient_of(parameter: torch.nn.Parameter) -> torch.Tensor | None:
    """The gradient of a parameter, where Megatron adds it up."""
    gradient: torch.Tensor | None = getattr(parameter, "main_grad", None)
    return parameter.grad if gradient is None else gradient


def is_finite(tensor: torch.Tensor | None) -> bool:
    """Whether all values of a tensor are finite, if there is one."""
    return tensor is None or bool(torch.isfinite(tensor).all())
