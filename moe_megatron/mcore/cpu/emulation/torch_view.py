"""What `torch`, `torch.cuda`, `torch.distributed` and `torch.optim` look like from inside Megatron.

A view defines a few names itself and passes every other name through to the real module. It does
not know who imports it; import_hook.py gives it to `megatron.*` modules only.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.distributed

from moe_megatron.mcore.cpu.emulation import gloo
from moe_megatron.mcore.cpu.emulation.optimizer import MegatronAdamW

CPU = torch.device("cpu")

_FACTORIES = (
    "arange as_tensor empty empty_like empty_strided eye full full_like linspace ones ones_like "
    "rand rand_like randint randn randn_like randperm tensor zeros zeros_like"
).split()


class ModuleView(ModuleType):
    """A module that defines a few names itself and takes the rest from the real module."""

    def __init__(self, real: ModuleType, own: Mapping[str, Any]) -> None:
        super().__init__(real.__name__, real.__doc__)
        self.__dict__.update(own)
        self.__dict__["_real"] = real

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.__dict__["_real"], name)
        if isinstance(value, ModuleType):
            value = view_of(value)
        # Functions, classes and modules are cached: they do not change. Other values may.
        if callable(value) or isinstance(value, ModuleType):
            self.__dict__[name] = value
        return value

    def __dir__(self) -> list[str]:
        return sorted({*dir(self.__dict__["_real"]), *self.__dict__})


def view_of(module: ModuleType) -> ModuleType:
    """Return the view of a torch module, or the module itself where no view is needed."""
    return _views().get(module.__name__, module)


@functools.cache
def _views() -> dict[str, ModuleType]:
    own = {
        "torch": _torch_names(),
        "torch.cuda": _cuda_names(),
        "torch.cuda.random": _rng_names(),
        "torch.cuda.nvtx": {"range_push": _no_op, "range_pop": _no_op},
        "torch.distributed": gloo.names(),
        "torch.optim": {"AdamW": MegatronAdamW},
    }
    real = {
        "torch": torch,
        "torch.cuda": torch.cuda,
        "torch.cuda.random": torch.cuda.random,
        "torch.cuda.nvtx": torch.cuda.nvtx,
        "torch.distributed": torch.distributed,
        "torch.optim": torch.optim,
    }
    return {name: ModuleView(real[name], own[name]) for name in own}


def _torch_names() -> dict[str, Any]:
    names: dict[str, Any] = {name: _on_cpu(getattr(torch, name)) for name in _FACTORIES}
    names["device"] = _Device
    names["compile"] = _no_compile
    return names


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def create(*args: Any, **kwargs: Any) -> torch.Tensor:
        if kwargs.get("device") is not None:
            kwargs["device"] = _DeviceMeta.__call__(_Device, kwargs["device"])
        kwargs.pop("pin_memory", None)  # for copies to a GPU; without one, torch refuses it
        return factory(*args, **kwargs)

    return create


class _DeviceMeta(type):
    def __call__(cls, *args: Any, **kwargs: Any) -> torch.device:
        first = args[0] if args else kwargs.get("device", kwargs.get("type"))
        name = first.type if isinstance(first, torch.device) else str(first).partition(":")[0]
        is_gpu = isinstance(first, int) or name == "cuda"
        return CPU if is_gpu else torch.device(*args, **kwargs)

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, torch.device)


class _Device(metaclass=_DeviceMeta):
    """`torch.device`, except that every CUDA device is the CPU."""


def _no_compile(function: Callable[..., Any] | None = None, **_: Any) -> Any:
    """`torch.compile` that compiles nothing: it would need a C++ compiler and slow the start."""
    return (lambda f: f) if function is None else function


class _Stream:
    """The only stream of a CPU; work on it is already done, so there is nothing to wait for."""

    cuda_stream = 0
    priority = 0
    device = CPU

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def wait_stream(self, *_: Any) -> None: ...

    def wait_event(self, *_: Any) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def record_event(self, *_: Any) -> "_Event":
        return _Event()

    @staticmethod
    def priority_range() -> tuple[int, int]:
        return (0, 0)


class _Event:
    """An event that has always happened already."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def record(self, *_: Any) -> None: ...

    def wait(self, *_: Any) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, _: Any) -> float:
        return 0.0


_STREAM = _Stream()
_CPU_PROPERTIES = SimpleNamespace(
    name="CPU", major=0, minor=0, total_memory=0, multi_processor_count=1
)


def _no_op(*_: Any, **__: Any) -> None:
    return None


@contextlib.contextmanager
def _no_context(*_: Any, **__: Any) -> Iterator[None]:
    yield


def _rng_names() -> dict[str, Any]:
    return {
        "get_rng_state": lambda *_, **__: torch.get_rng_state(),
        "set_rng_state": lambda state, *_, **__: torch.set_rng_state(state),
        "manual_seed": torch.manual_seed,
        "manual_seed_all": torch.manual_seed,
    }


def _cuda_names() -> dict[str, Any]:
    return {
        **_rng_names(),
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: CPU,
        "set_device": _no_op,
        "device": _no_context,
        "get_device_name": lambda *_: "CPU",
        # So low that Megatron never chooses a kernel for newer GPUs.
        "get_device_capability": lambda *_: (0, 0),
        "get_device_properties": lambda *_: _CPU_PROPERTIES,
        "Stream": _Stream,
        "ExternalStream": _Stream,
        "Event": _Event,
        "stream": _no_context,
        "current_stream": lambda *_: _STREAM,
        "default_stream": lambda *_: _STREAM,
        "set_stream": _no_op,
        "synchronize": _no_op,
        "empty_cache": _no_op,
        "is_current_stream_capturing": lambda: False,
        "memory_allocated": lambda *_: 0,
        "memory_reserved": lambda *_: 0,
        "max_memory_allocated": lambda *_: 0,
        "max_memory_reserved": lambda *_: 0,
        "memory_stats": lambda *_: _ZeroStatistics(),
        "_lazy_call": lambda callback, **_: callback(),
        "_lazy_init": _no_op,
        "FloatTensor": torch.FloatTensor,
        "HalfTensor": torch.HalfTensor,
        "BFloat16Tensor": torch.BFloat16Tensor,
        "DoubleTensor": torch.DoubleTensor,
        "IntTensor": torch.IntTensor,
        "LongTensor": torch.LongTensor,
    }


class _ZeroStatistics(dict[str, int]):
    """Memory statistics of a device without memory of its own: every value is 0."""

    def __missing__(self, key: str) -> int:
        return 0
