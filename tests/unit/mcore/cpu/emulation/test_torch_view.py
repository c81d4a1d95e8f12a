"""The view of torch: what it answers itself, and that it hands on the rest."""

import contextlib
from typing import Any

import pytest
import torch

from moe_megatron.mcore.cpu.emulation.optimizer import MegatronAdamW
from moe_megatron.mcore.cpu.emulation.torch_view import CPU, view_of

view: Any = view_of(torch)


def test_module_without_a_view_is_itself() -> None:
    assert view_of(torch.nn) is torch.nn
    assert view.nn is torch.nn


def test_other_names_are_the_real_ones() -> None:
    for name in ("matmul", "Tensor", "float32", "no_grad", "Size", "save", "backends", "library"):
        assert getattr(view, name) is getattr(torch, name)
    assert view.distributed.barrier is torch.distributed.barrier
    assert view.distributed.ReduceOp is torch.distributed.ReduceOp
    assert view.optim.SGD is torch.optim.SGD
    assert view.optim.AdamW is MegatronAdamW
    assert set(dir(torch)) <= set(dir(view))
    assert view.__name__ == "torch"


def test_unknown_name_raises_as_in_torch() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        view.no_such_name  # noqa: B018
    assert not hasattr(view.cuda, "no_such_name")


def test_values_are_read_anew() -> None:
    before = view.distributed.group.WORLD
    assert before is torch.distributed.group.WORLD


@pytest.mark.parametrize("device", ["cuda", "cuda:3", 0, 3, torch.device("cuda", 1)])
def test_every_cuda_device_is_the_cpu(device: Any) -> None:
    assert view.device(device) == CPU
    assert view.zeros(2, device=device).device == CPU
    assert view.empty_like(torch.ones(2), device=device).device == CPU


def test_type_and_index_of_a_device_are_understood() -> None:
    assert view.device("cuda", 1) == CPU
    assert view.device(type="cuda", index=1) == CPU


def test_other_devices_stay() -> None:
    assert view.device("meta") == torch.device("meta")
    assert view.zeros(2, device="meta").device.type == "meta"
    assert view.tensor([1]).device == CPU


def test_device_is_a_class_for_isinstance() -> None:
    assert isinstance(torch.device("cpu"), view.device)
    assert not isinstance("cpu", view.device)


@pytest.mark.parametrize("name", ["randn", "arange", "full"])
def test_factories_give_what_torch_gives(name: str) -> None:
    args: dict[str, tuple[Any, ...]] = {"randn": (3,), "arange": (5,), "full": ((2,), 7.0)}
    torch.manual_seed(3)
    expected = getattr(torch, name)(*args[name])
    torch.manual_seed(3)
    assert torch.equal(getattr(view, name)(*args[name], device="cuda"), expected)
    assert getattr(view, name).__name__ == name


def test_memory_that_a_gpu_could_read_faster_is_plain_memory() -> None:
    tensor = view.tensor([1, 2], device="cpu", pin_memory=True)
    assert tensor.tolist() == [1, 2]
    assert not tensor.is_pinned()


def test_compile_runs_eagerly_in_both_forms() -> None:
    def double(x: float) -> float:
        return 2 * x

    assert view.compile(double) is double
    assert view.compile(mode="max-autotune")(double) is double


def test_cuda_looks_like_one_device_that_is_the_cpu() -> None:
    cuda = view.cuda
    assert (cuda.is_available(), cuda.device_count(), cuda.current_device()) == (True, 1, CPU)
    assert cuda.get_device_capability() == (0, 0)
    assert cuda.get_device_properties(0).major == 0
    assert cuda.memory_stats()["allocated_bytes.all.current"] == 0
    assert cuda.max_memory_allocated() == cuda.memory_reserved(0) == 0


def test_streams_and_events_have_nothing_to_wait_for() -> None:
    cuda = view.cuda
    stream, event = cuda.Stream(priority=-1), cuda.Event(enable_timing=True)
    with cuda.stream(stream), cuda.device(0):
        stream.wait_stream(cuda.current_stream())
        event.record(stream)
        event.wait()
    event.synchronize()
    stream.synchronize()
    assert event.query()
    assert stream.query()
    assert stream.record_event().query()
    assert event.elapsed_time(cuda.Event()) == 0.0
    assert cuda.Stream.priority_range() == (0, 0)


def test_profiler_marks_do_nothing() -> None:
    view.cuda.nvtx.range_push("x")
    view.cuda.nvtx.range_pop()


def test_random_state_of_the_device_is_that_of_the_cpu() -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        view.cuda.manual_seed(5)
        state = view.cuda.get_rng_state()
        first = torch.rand(3)
        view.cuda.set_rng_state(state)
        assert torch.equal(torch.rand(3), first)
