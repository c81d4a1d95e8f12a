"""Which device a run uses, and what follows from it: processes, precision, backend, layers.

Every choice is returned as a `Choice`, with its reason. A value that the user requested is checked
against the machine, never silently replaced. torch is imported only inside functions, and nothing
here knows Megatron, models or configuration files.
"""

import importlib
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moe_megatron.errors import BackendUnavailableError, ConfigError, TopologyError
from moe_megatron.platform.choice import Choice

DEVICE_VARIABLE = "MOE_MEGATRON_DEVICE"

type DeviceKind = Literal["cpu", "cuda"]
type Precision = Literal["fp32", "bf16"]
type Backend = Literal["gloo", "nccl"]
type TransformerImpl = Literal["local", "transformer_engine"]

# Ampere, the first generation with bfloat16 tensor cores.
_BF16_CAPABILITY = (8, 0)
# Two processes show expert parallelism without overloading a small machine.
_CPU_PROCESSES = 2
_FUSED_GRADIENT_MODULE = "fused_weight_gradient_mlp_cuda"


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One CUDA device that torch can use."""

    name: str
    compute_capability: tuple[int, int]
    memory_bytes: int

    def __str__(self) -> str:
        major, minor = self.compute_capability
        return (
            f"{self.name}, compute capability {major}.{minor}, {self.memory_bytes / 2**30:.0f} GiB"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """The kind of device a run uses on this machine, and the devices of that kind."""

    kind: DeviceKind
    gpus: tuple[Gpu, ...] = ()
    """Empty for the CPU."""

    @property
    def count(self) -> int:
        """Devices that can each hold one process: the GPUs, or the one CPU."""
        return len(self.gpus) or 1

    def __str__(self) -> str:
        return self.kind if self.kind == "cpu" else f"{self.count} x {self.gpus[0].name}"


def detect_device() -> Choice[Device]:
    """Find the device to train on: CUDA if torch can use it, else the CPU.

    The environment variable `MOE_MEGATRON_DEVICE` (`cpu` or `cuda`) overrides this.

    Returns:
        The device with the GPUs that are visible to this process, and why it was chosen.

    Raises:
        ConfigError: `MOE_MEGATRON_DEVICE` has another value.
        BackendUnavailableError: It requests CUDA, which this process cannot use.
    """
    requested = os.environ.get(DEVICE_VARIABLE, "").strip().lower()
    if requested not in {"", "cpu", "cuda"}:
        raise ConfigError(
            f"{DEVICE_VARIABLE} ({requested}) must be cpu or cuda; set one of them, or unset it to "
            "have the device detected."
        )
    if requested == "cpu":
        return Choice(value=Device(kind="cpu"), reason=f"{DEVICE_VARIABLE}=cpu asks for it")
    gpus = _usable_gpus()
    if gpus:
        reason = f"{DEVICE_VARIABLE}=cuda asks for it" if requested else "torch can use CUDA here"
        return Choice(value=Device(kind="cuda", gpus=gpus), reason=reason)
    obstacle, remedy = _why_no_cuda()
    if requested == "cuda":
        raise BackendUnavailableError(
            f"{DEVICE_VARIABLE}=cuda asks for a CUDA device, but {obstacle}; {remedy}, or unset "
            f"{DEVICE_VARIABLE} to train on the CPU."
        )
    return Choice(value=Device(kind="cpu"), reason=obstacle)


def check_cuda(asked: str) -> None:
    """Check that torch can use CUDA here.

    Args:
        asked: What asks for it, for the message.

    Raises:
        BackendUnavailableError: It cannot; the message says why, and what to do.
    """
    import torch

    if torch.cuda.is_available():
        return
    obstacle, remedy = _why_no_cuda()
    raise BackendUnavailableError(
        f"{asked} asks for CUDA, but {obstacle}; {remedy}, or stay with 'cpu'."
    )


def available_cores() -> int:
    """CPU cores this process may run on (its affinity, not the machine's total)."""
    return len(os.sched_getaffinity(0))


def choose_num_processes(device: Device, requested: int | None = None) -> Choice[int]:
    """Choose how many processes one machine runs.

    Args:
        device: What `detect_device` found.
        requested: The requested number, or None to have it chosen.

    Returns:
        One process per GPU. On the CPU two, so that experts are spread over processes as on a
        cluster, or one if there is only one core.

    Raises:
        ConfigError: `requested` is less than 1.
        TopologyError: `requested` exceeds the number of GPUs; NCCL needs one GPU per process.
    """
    if requested is not None:
        return _requested_processes(device, requested)
    if device.kind == "cuda":
        reason = "one process per GPU" if device.count > 1 else "there is one GPU"
        return Choice(value=device.count, reason=reason)
    cores = available_cores()
    if cores < _CPU_PROCESSES:
        return Choice(value=1, reason="there is one CPU core")
    return Choice(
        value=_CPU_PROCESSES, reason=f"{cores} CPU cores let experts be spread over two processes"
    )


def choose_backend(device: Device) -> Choice[Backend]:
    """Choose how processes communicate.

    Args:
        device: What `detect_device` found.

    Returns:
        `nccl` between GPUs, `gloo` on the CPU.
    """
    if device.kind == "cuda":
        return Choice(value="nccl", reason="it connects GPUs directly")
    return Choice(value="gloo", reason="it needs no GPU")


def choose_precision(device: Device) -> Choice[Precision]:
    """Choose the number format of weights and activations.

    Args:
        device: What `detect_device` found.

    Returns:
        `bf16` if all GPUs, or the CPU, support it in hardware, else `fp32`.
    """
    if device.kind == "cpu":
        if _cpu_multiplies_bf16():
            return Choice(value="bf16", reason="the CPU multiplies it in hardware")
        # Without such instructions bf16 products are emulated, several times slower than fp32.
        return Choice(value="fp32", reason="the CPU has no instructions for bf16")
    oldest = min(device.gpus, key=lambda gpu: gpu.compute_capability)
    if oldest.compute_capability >= _BF16_CAPABILITY:
        return Choice(value="bf16", reason="the GPU computes in it natively")
    major, minor = oldest.compute_capability
    return Choice(
        value="fp32",
        reason=f"{oldest.name} has compute capability {major}.{minor}, and bf16 needs 8.0",
    )


def choose_transformer_impl(
    device: Device, requested: TransformerImpl | None = None
) -> Choice[TransformerImpl]:
    """Choose the implementation of the transformer layers.

    Args:
        device: What `detect_device` found.
        requested: The requested implementation, or None to have it chosen.

    Returns:
        `transformer_engine` on GPUs if it can be imported, else `local`: Megatron's own layers on
        plain torch.

    Raises:
        BackendUnavailableError: Transformer Engine is requested and cannot be used here.
    """
    if requested == "local":
        return Choice(value="local", reason="it was requested")
    obstacle = _why_no_transformer_engine(device)
    if obstacle is None:
        reason = "it was requested" if requested else "Transformer Engine is installed"
        return Choice(value="transformer_engine", reason=reason)
    if requested == "transformer_engine":
        raise BackendUnavailableError(
            f"transformer_impl (transformer_engine) cannot be used: {obstacle}; choose "
            "transformer_impl=local, or use a GPU machine with transformer-engine[pytorch]."
        )
    return Choice(value="local", reason=obstacle)


def choose_accumulation_fusion() -> Choice[bool]:
    """Choose whether one kernel computes a weight's gradient and adds it to the sum.

    Returns:
        Whether Apex's kernel is there, which Megatron demands for the output projection even where
        Transformer Engine does without it for all else.
    """
    if importlib.util.find_spec(_FUSED_GRADIENT_MODULE) is None:
        return Choice(value=False, reason=f"{_FUSED_GRADIENT_MODULE} of Apex is not installed")
    return Choice(value=True, reason=f"{_FUSED_GRADIENT_MODULE} of Apex is installed")


def _cpu_multiplies_bf16() -> bool:
    """Whether the CPU has AVX512-BF16 or AMX."""
    import torch

    # Older releases of torch do not have get_capabilities.
    found: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def _usable_gpus() -> tuple[Gpu, ...]:
    """The CUDA devices torch can use, in torch's order."""
    import torch

    if not torch.cuda.is_available():
        return ()
    found = (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count()))
    return tuple(
        Gpu(name=p.name, compute_capability=(p.major, p.minor), memory_bytes=p.total_memory)
        for p in found
    )


def _why_no_cuda() -> tuple[str, str]:
    """Why torch cannot use CUDA, and what to do about it."""
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA", "install a CUDA build of torch"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in {"", "-1"}:
        return f"CUDA_VISIBLE_DEVICES ({hidden!r}) hides every GPU", "unset CUDA_VISIBLE_DEVICES"
    if any(Path("/dev").glob("nvidia[0-9]*")):
        return (
            f"torch {torch.__version__} (CUDA {torch.version.cuda}) cannot use the NVIDIA device "
            "of this machine",
            "check that nvidia-smi works and that its driver supports this CUDA version",
        )
    return "no CUDA device was found", "run on a machine with an NVIDIA GPU and its driver"


def _requested_processes(device: Device, requested: int) -> Choice[int]:
    """Check a requested number of processes against the device."""
    if requested < 1:
        raise ConfigError(f"num_processes ({requested}) must be at least 1; try 1 or leave it out.")
    if device.kind == "cuda" and requested > device.count:
        raise TopologyError(
            f"num_processes ({requested}) must not exceed the GPUs of this machine "
            f"({device.count}); use at most {device.count}, or {DEVICE_VARIABLE}=cpu."
        )
    return Choice(value=requested, reason="it was requested")


def _why_no_transformer_engine(device: Device) -> str | None:
    """Why Transformer Engine cannot be used; None if it can."""
    if device.kind == "cpu":
        return "Transformer Engine needs a CUDA device"
    if importlib.util.find_spec("transformer_engine") is None:
        return "Transformer Engine is not installed"
    try:
        # Only an import shows whether its libraries fit the driver, CUDA and torch; torch must be
        # imported first.
        importlib.import_module("torch")
        importlib.import_module("transformer_engine.pytorch")
    except (ImportError, OSError, RuntimeError, AssertionError, AttributeError) as error:
        first_line = str(error).strip().partition("\n")[0] or type(error).__name__
        return f"Transformer Engine does not load: {first_line}"
    return None
