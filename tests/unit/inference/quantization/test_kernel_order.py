"""The order of torch's 4-bit product, made faster than torch makes it."""

import subprocess
import sys

import pytest
import torch

from moe_megatron.inference.quantization import kernel_order
from moe_megatron.inference.quantization.kernel_order import by_torch, reorder

SHAPES = [(64, 16), (32, 16), (128, 32), (96, 48), (48, 32), (16, 16), (576, 768)]


def some(rows: int, half_columns: int) -> torch.Tensor:
    chance = torch.Generator().manual_seed(rows)
    return torch.randint(256, (rows, half_columns), dtype=torch.uint8, generator=chance)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_order_is_torchs(shape: tuple[int, int]) -> None:
    nibbles = some(*shape)
    found = torch.empty_like(nibbles)
    reorder(nibbles, found)
    assert torch.equal(found, by_torch(nibbles))


def test_where_the_order_is_another_torch_makes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def backwards(nibbles: torch.Tensor) -> torch.Tensor:
        return nibbles.flip(1)

    monkeypatch.setattr(kernel_order, "by_torch", backwards)
    kernel_order._block.cache_clear()
    try:
        nibbles = some(64, 16)
        found = torch.empty_like(nibbles)
        reorder(nibbles, found)
        assert torch.equal(found, nibbles.flip(1))
        assert kernel_order._block() is None
    finally:
        kernel_order._block.cache_clear()


def test_a_lesser_processor_has_another_order() -> None:
    """Torch takes the kernels of one when it is told to."""
    program = f"""
import torch
from moe_megatron.inference.quantization.kernel_order import by_torch, reorder
for rows, columns in {SHAPES}:
    nibbles = torch.randint(256, (rows, columns), dtype=torch.uint8)
    found = torch.empty_like(nibbles)
    reorder(nibbles, found)
    assert torch.equal(found, by_torch(nibbles)), (rows, columns)
"""
    subprocess.run(
        [sys.executable, "-c", program],
        env={"ATEN_CPU_CAPABILITY": "avx2", "PATH": ""},
        check=True,
        timeout=120,
    )
