from typing import Any

import pytest
import torch

from moe_megatron.mcore.cpu.emulation import tensor_methods


class Recorder:
    """Not a tensor: answers with what it was called with."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: (name, args, kwargs)


@pytest.mark.parametrize("name", sorted(tensor_methods.REWRITTEN))
def test_other_objects_get_their_own_call(name: str) -> None:
    answer = getattr(tensor_methods, name)(Recorder(), 1, key=2)
    assert answer == (name, (1,), {"key": 2})


def test_parameter_subclass_and_module_stay_where_they_are() -> None:
    parameter, module = torch.nn.Parameter(torch.ones(2)), torch.nn.Linear(2, 2)
    assert tensor_methods.cuda(parameter, 0, non_blocking=True) is parameter
    assert tensor_methods.cuda(module) is module
    assert tensor_methods.pin_memory(parameter) is parameter


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.float32, "torch.cuda.FloatTensor"),
        (torch.float16, "torch.cuda.HalfTensor"),
        (torch.bfloat16, "torch.cuda.BFloat16Tensor"),
        (torch.float64, "torch.cuda.DoubleTensor"),
        (torch.int64, "torch.LongTensor"),
    ],
)
def test_type_without_arguments_names_the_cuda_type(dtype: torch.dtype, name: str) -> None:
    assert tensor_methods.type(torch.ones(1, dtype=dtype)) == name


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((torch.float64,), {}), (("torch.DoubleTensor",), {}), ((), {"dtype": torch.float64})],
)
def test_type_with_arguments_converts(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    assert tensor_methods.type(torch.ones(1), *args, **kwargs).dtype == torch.float64
