"""Says how much memory a run will take on this machine, and warns where there is not as much.

An estimate: it never keeps a run from starting.
"""

from moe_megatron.analytics.run_memory import RunMemory, run_memory
from moe_megatron.config import RunConfig
from moe_megatron.platform.choice import Choice
from moe_megatron.platform.device import Device, choose_precision
from moe_megatron.platform.free_memory import available_memory

_REMEDY = (
    "Lower training.micro_batch_size or data.sequence_length, set training.recompute to full, use "
    "more machines, or make the model smaller."
)


def memory_lines(config: RunConfig, processes: int, device: Device) -> list[str]:
    """What to say about the memory of a run before it starts.

    Args:
        config: The run; it fits the processes.
        processes: Number of processes, all on this machine.
        device: What they compute on.

    Returns:
        The estimate in a line, and a warning where it does not fit.
    """
    precision = config.training.precision
    if precision == "auto":
        precision = choose_precision(device).value
    needed = run_memory(config, precision=precision, world_size=processes)
    if device.kind == "cuda":
        return _on_gpus(needed, processes, min(gpu.memory_bytes for gpu in device.gpus))
    return on_cpu(needed, processes, available_memory())


def on_cpu(needed: RunMemory, processes: int, available: Choice[int] | None) -> list[str]:
    """The lines for a run whose processes share the machine's memory.

    Args:
        needed: What they need together.
        processes: Their number.
        available: What there is, and by what it is limited; None: unknown.
    """
    parts = {"training": needed.training, "saving": needed.saving, "resuming": needed.resuming}
    said = ", ".join(f"{_gib(nbytes)} for {name}" for name, nbytes in parts.items())
    line = (
        f"memory: about {said} ({processes} process(es); checkpoints of {_gib(needed.checkpoint)})"
    )
    if available is None or needed.peak <= available.value:
        return [line]
    worst = max(parts, key=lambda name: parts[name])
    return [
        line,
        f"warning: {worst} needs about {_gib(needed.peak)} of memory, but {_gib(available.value)} "
        f"are available ({available.reason}); the system may kill the run. {_REMEDY}",
    ]


def _on_gpus(needed: RunMemory, processes: int, gpu_bytes: int) -> list[str]:
    """Weights, gradients and optimizer alone: what activations take there is not measured."""
    each = needed.stored // processes
    line = (
        f"memory: {_gib(each)} a GPU for weights, gradients and optimizer, activations not counted"
    )
    if each <= gpu_bytes:
        return [line]
    return [
        line,
        f"warning: weights, gradients and optimizer need {_gib(each)} a GPU, but the smallest has "
        f"{_gib(gpu_bytes)}. Use more GPUs with larger parallel sizes, or make the model smaller.",
    ]


def _gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:.1f} GiB"
