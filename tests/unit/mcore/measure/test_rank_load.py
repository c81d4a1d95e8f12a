"""Compute time of a process: which modules, which passes, and that the hooks go away."""

import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from moe_megatron.mcore.measure import rank_load
from moe_megatron.mcore.measure.rank_load import ComputeTimer, by_expert_rank


class Attention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.core_attention = torch.nn.Identity()
        self.linear = torch.nn.Linear(2, 2)

    def forward(self, x):
        return self.core_attention(self.linear(x))


@pytest.fixture
def ticks(monkeypatch):
    """A clock that moves one second each time it is read."""
    count = iter(range(1000))
    monkeypatch.setattr(rank_load.time, "perf_counter", lambda: float(next(count)))


def test_first_training_pass_of_each_step_is_timed(ticks):
    model = torch.nn.ModuleList([Attention(), Attention()])
    timer = ComputeTimer([model])
    for _ in range(3):
        for layer in model:
            layer(torch.ones(1, 2))
    assert timer.take().compute_seconds == 2.0  # a second for each layer, further passes left out
    assert timer.take().compute_seconds == 0.0
    model[0](torch.ones(1, 2))
    assert timer.take().compute_seconds == 1.0


def test_evaluation_is_not_timed(ticks):
    model = Attention()
    timer = ComputeTimer([model])
    model.eval()(torch.ones(1, 2))
    assert timer.take().compute_seconds == 0.0


def test_memory_is_that_of_this_process(ticks):
    measured = ComputeTimer([Attention()]).take().memory_bytes
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    assert measured == pytest.approx(pages * resource.getpagesize(), rel=0.02)


def test_hooks_are_removed():
    model = Attention()
    ComputeTimer([model]).remove()
    assert not model.core_attention._forward_hooks
    assert not model.core_attention._forward_pre_hooks


@pytest.mark.gpu
def test_gpu_time_is_read_a_step_later():
    model = Attention().cuda()
    timer = ComputeTimer([model])
    model(torch.ones(1, 2, device="cuda"))
    assert timer.take().compute_seconds == 0.0
    torch.cuda.synchronize()
    assert timer.take().compute_seconds > 0.0
    assert timer.take().memory_bytes > 0


@pytest.mark.parametrize(
    ("seconds", "ranks", "expected"),
    [
        ([1.0, 2.0, 3.0, 4.0], [0, 1, 0, 1], (2.0, 3.0)),
        ([1.0, 2.0, 0.0, 4.0], [0, 1, 0, 1], (1.0, 3.0)),  # one was not measured
        ([0.0, 2.0, 0.0, 4.0], [0, 1, 0, 1], ()),
        ([1.0, 2.0], [0, 0], ()),
        ([0.0], [0], ()),
    ],
)
def test_time_of_an_expert_rank_is_the_mean_of_its_measured_processes(seconds, ranks, expected):
    assert by_expert_rank(np.array(seconds), np.array(ranks)) == expected
