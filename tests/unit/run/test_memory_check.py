"""What is said about the memory of a run before it starts."""

from moe_megatron.analytics.run_memory import RunMemory
from moe_megatron.config import load_config
from moe_megatron.platform.choice import Choice
from moe_megatron.platform.device import Device, Gpu
from moe_megatron.run.launch import fitted
from moe_megatron.run.memory_check import memory_lines, on_cpu

GIB = 2**30
NEEDED = RunMemory(
    training=5 * GIB, saving=7 * GIB, resuming=5 * GIB, stored=2 * GIB, checkpoint=GIB
)


def available(gib: int) -> Choice[int]:
    return Choice(value=gib * GIB, reason="what the limit of 9.0 GiB leaves")


def test_run_that_fits_is_one_line() -> None:
    expected = (
        "memory: about 5.0 GiB for training, 7.0 GiB for saving, 5.0 GiB for resuming "
        "(2 process(es); checkpoints of 1.0 GiB)"
    )
    assert on_cpu(NEEDED, 2, available(7)) == [expected]
    assert on_cpu(NEEDED, 2, None) == [expected]


def test_run_that_does_not_fit_is_warned_of_with_remedies() -> None:
    _, warning = on_cpu(NEEDED, 2, available(6))
    assert warning == (
        "warning: saving needs about 7.0 GiB of memory, but 6.0 GiB are available (what the limit "
        "of 9.0 GiB leaves); the system may kill the run. Lower training.micro_batch_size or "
        "data.sequence_length, set training.recompute to full, use more machines, or make the "
        "model smaller."
    )


def test_gpus_that_cannot_hold_weights_and_optimizer_are_warned_of() -> None:
    config = fitted(load_config("mixtral_8x7b"), 8)
    small, large = (
        Device(kind="cuda", gpus=8 * (Gpu(name="X", compute_capability=(9, 0), memory_bytes=it),))
        for it in (24 * GIB, 500 * GIB)
    )
    (line,) = memory_lines(config, 8, large)
    assert line.endswith("a GPU for weights, gradients and optimizer, activations not counted")
    assert memory_lines(config, 8, small)[0] == line
    assert "but the smallest has 24.0 GiB. Use more GPUs" in memory_lines(config, 8, small)[1]
