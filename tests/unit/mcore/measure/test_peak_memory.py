"""The peak of a step: what came and went between two questions, and nothing of before."""

import mmap
from pathlib import Path

import pytest
import torch

from moe_megatron.mcore.measure import peak_memory
from moe_megatron.mcore.measure.peak_memory import PeakMemory

SIZE = 200 * 2**20
linux = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a process its peak"
)


@linux
def test_memory_that_came_and_went_is_in_the_peak_of_its_step_alone():
    peak = PeakMemory(on_gpu=False)
    before = peak.take()
    with mmap.mmap(-1, SIZE) as held:  # what torch frees may stay with the process
        held.write(bytes(SIZE))
    during, after = peak.take(), peak.take()
    peak.close()
    assert during - before > 0.9 * SIZE
    assert during - after > 0.9 * SIZE
    assert before > 2**20


@linux
def test_a_closed_one_knows_nothing_and_keeps_no_file_open():
    open_files = set(Path("/proc/self/fd").iterdir())
    peak = PeakMemory(on_gpu=False)
    peak.close()
    peak.close()
    assert peak.take() == 0.0
    assert len(set(Path("/proc/self/fd").iterdir())) <= len(open_files)


def test_a_system_that_does_not_tell_has_no_peak(monkeypatch):
    def refused(path, flags):
        raise PermissionError(path)

    monkeypatch.setattr(peak_memory.os, "open", refused)
    assert PeakMemory(on_gpu=False).take() == 0.0


@pytest.mark.gpu
def test_gpu_peak_is_that_of_tensors_since_the_last_question():
    peak = PeakMemory(on_gpu=True)
    held = torch.cuda.memory_allocated()
    torch.ones(SIZE // 4, device="cuda")
    assert peak.take() - held >= SIZE
    assert peak.take() - held < SIZE
