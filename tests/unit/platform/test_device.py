"""Choices about the device; GPUs that this machine lacks are described as plain data."""

import sys

import pytest

from moe_megatron.errors import BackendUnavailableError, ConfigError, TopologyError
from moe_megatron.platform import device as device_module
from moe_megatron.platform.choice import Choice
from moe_megatron.platform.device import (
    DEVICE_VARIABLE,
    Device,
    Gpu,
    choose_accumulation_fusion,
    choose_backend,
    choose_num_processes,
    choose_precision,
    choose_transformer_impl,
    detect_device,
)

CPU = Device(kind="cpu")
HOPPER = Gpu(name="H200", compute_capability=(9, 0), memory_bytes=139 * 2**30)
VOLTA = Gpu(name="V100", compute_capability=(7, 0), memory_bytes=16 * 2**30)


def cuda(*gpus: Gpu) -> Device:
    return Device(kind="cuda", gpus=gpus)


def test_choice_as_text_names_value_and_reason():
    assert str(Choice(value=2, reason="two cores")) == "2 (two cores)"


@pytest.mark.parametrize("asked", ["cpu", " CPU "])
def test_detect_device_cpu_requested_is_honoured(monkeypatch, asked):
    monkeypatch.setenv(DEVICE_VARIABLE, asked)
    choice = detect_device()
    assert choice.value == CPU
    assert choice.reason == "MOE_MEGATRON_DEVICE=cpu asks for it"


@pytest.mark.parametrize("asked", ["tpu", "auto"])
def test_detect_device_unknown_request_is_refused(monkeypatch, asked):
    monkeypatch.setenv(DEVICE_VARIABLE, asked)
    with pytest.raises(
        ConfigError, match=rf"MOE_MEGATRON_DEVICE \({asked}\) must be cpu or cuda; set"
    ):
        detect_device()


def test_detect_device_hidden_gpus_gives_cpu_and_says_so(monkeypatch):
    import torch

    built_with_cuda = torch.version.cuda is not None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv(DEVICE_VARIABLE, raising=False)
    choice = detect_device()
    assert choice.value == CPU
    assert ("hides every GPU" if built_with_cuda else "built without CUDA") in choice.reason


def test_detect_device_cuda_requested_but_absent_says_what_to_do(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv(DEVICE_VARIABLE, "cuda")
    with pytest.raises(
        BackendUnavailableError,
        match=r"MOE_MEGATRON_DEVICE=cuda asks for a CUDA device, but .*; .*, or unset "
        r"MOE_MEGATRON_DEVICE to train on the CPU\.",
    ):
        detect_device()


@pytest.mark.gpu
def test_detect_device_on_gpu_machine_describes_each_gpu(monkeypatch):
    import torch

    monkeypatch.delenv(DEVICE_VARIABLE, raising=False)
    device = detect_device().value
    assert device.kind == "cuda"
    assert device.count == torch.cuda.device_count()
    assert device.gpus[0].name == torch.cuda.get_device_name(0)
    assert device.gpus[0].memory_bytes > 2**30


@pytest.mark.parametrize(("cores", "processes"), [(1, 1), (2, 2), (64, 2)])
def test_choose_num_processes_cpu_follows_cores(monkeypatch, cores, processes):
    monkeypatch.setattr(device_module, "available_cores", lambda: cores)
    choice = choose_num_processes(CPU)
    assert choice.value == processes
    assert "core" in choice.reason


def test_choose_num_processes_gpus_gives_one_each():
    assert choose_num_processes(cuda(HOPPER)) == Choice(value=1, reason="there is one GPU")
    assert choose_num_processes(cuda(HOPPER, HOPPER, HOPPER)).value == 3


def test_choose_num_processes_requested_is_checked():
    assert choose_num_processes(CPU, 4) == Choice(value=4, reason="it was requested")
    with pytest.raises(ConfigError, match=r"num_processes \(0\) must be at least 1; try 1"):
        choose_num_processes(CPU, 0)
    with pytest.raises(
        TopologyError, match=r"num_processes \(2\) must not exceed the GPUs .* \(1\); use at most 1"
    ):
        choose_num_processes(cuda(HOPPER), 2)


def test_choose_backend_follows_device():
    assert choose_backend(CPU).value == "gloo"
    assert choose_backend(cuda(HOPPER)).value == "nccl"


def test_choose_precision_follows_oldest_gpu():
    assert choose_precision(cuda(HOPPER)).value == "bf16"
    mixed = choose_precision(cuda(HOPPER, VOLTA))
    assert mixed.value == "fp32"
    assert mixed.reason == "V100 has compute capability 7.0, and bf16 needs 8.0"


@pytest.mark.parametrize(
    ("instructions", "value", "reason"),
    [
        ({"avx512_bf16": True}, "bf16", "the CPU multiplies it in hardware"),
        ({"amx_bf16": True}, "bf16", "the CPU multiplies it in hardware"),
        ({"avx512_bf16": False, "avx2": True}, "fp32", "the CPU has no instructions for bf16"),
    ],
)
def test_choose_precision_on_a_cpu_follows_its_instructions(
    instructions, value, reason, monkeypatch
):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: instructions)
    assert choose_precision(CPU) == Choice(value=value, reason=reason)


def test_choose_transformer_impl_cpu_is_local():
    choice = choose_transformer_impl(CPU)
    assert choice == Choice(value="local", reason="Transformer Engine needs a CUDA device")
    assert choose_transformer_impl(cuda(HOPPER), "local").value == "local"


def test_choose_transformer_impl_engine_requested_on_cpu_is_refused():
    with pytest.raises(
        BackendUnavailableError,
        match=r"transformer_impl \(transformer_engine\) cannot be used: .* needs a CUDA device; "
        r"choose transformer_impl=local",
    ):
        choose_transformer_impl(CPU, "transformer_engine")


@pytest.fixture
def fake_engine(tmp_path, monkeypatch):
    """A transformer_engine package with the given body, first on the import path."""

    def make(body: str) -> None:
        package = tmp_path / "transformer_engine"
        package.mkdir()
        (package / "__init__.py").write_text("")
        (package / "pytorch.py").write_text(body)
        for name in ("transformer_engine", "transformer_engine.pytorch"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.syspath_prepend(tmp_path)

    yield make
    for name in ("transformer_engine", "transformer_engine.pytorch"):
        sys.modules.pop(name, None)


def test_choose_transformer_impl_engine_loads_is_used(fake_engine):
    fake_engine("")
    choice = choose_transformer_impl(cuda(HOPPER))
    assert choice == Choice(value="transformer_engine", reason="Transformer Engine is installed")


def test_choose_transformer_impl_engine_broken_is_local_and_says_why(fake_engine):
    fake_engine("raise OSError('libcublas.so.13: cannot open\\nmore')")
    choice = choose_transformer_impl(cuda(HOPPER))
    assert choice.value == "local"
    assert choice.reason == "Transformer Engine does not load: libcublas.so.13: cannot open"


def test_choose_accumulation_fusion_without_the_kernel_is_off_and_says_why():
    name = "fused_weight_gradient_mlp_cuda"
    choice = choose_accumulation_fusion()
    assert choice == Choice(value=False, reason=f"{name} of Apex is not installed")


def test_choose_accumulation_fusion_with_the_kernel_is_on(tmp_path, monkeypatch):
    name = "fused_weight_gradient_mlp_cuda"
    (tmp_path / f"{name}.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    choice = choose_accumulation_fusion()
    assert choice == Choice(value=True, reason=f"{name} of Apex is installed")


def test_device_as_text_names_kind_and_gpus():
    assert str(CPU) == "cpu"
    assert str(cuda(HOPPER, HOPPER)) == "2 x H200"
    assert str(HOPPER) == "H200, compute capability 9.0, 139 GiB"
