"""MegatronAdamW against torch's AdamW, and the state that Megatron saves and loads."""

import copy
from typing import Any

import pytest
import torch

from moe_megatron.mcore.cpu.emulation.optimizer import MegatronAdamW
from moe_megatron.mcore.cpu.fast import SWITCH

SHAPES = [[(4, 3), (5,)], [(2, 2)], [(7,)]]
"""Of three groups; the parameters of the last never get a gradient."""

Groups = list[dict[str, Any]]


def make_groups() -> Groups:
    generator = torch.Generator().manual_seed(0)
    options = ({"lr": 0.1, "weight_decay": 0.0}, {"lr": 0.01, "betas": (0.8, 0.9)}, {})
    return [
        {"params": [torch.randn(s, generator=generator).requires_grad_() for s in shapes], **o}
        for shapes, o in zip(SHAPES, options, strict=True)
    ]


def set_gradients(groups: Groups, step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for group in groups[:-1]:
        for parameter in group["params"]:
            parameter.grad = torch.randn(parameter.shape, generator=generator)


def parameters(groups: Groups) -> list[torch.Tensor]:
    return [p.detach() for group in groups for p in group["params"]]


def assert_same(ours: Groups, theirs: Groups) -> None:
    for a, b in zip(parameters(ours), parameters(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.fixture
def pair() -> tuple[MegatronAdamW, torch.optim.AdamW]:
    settings = {"lr": 0.02, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-6}
    return MegatronAdamW(make_groups(), **settings), torch.optim.AdamW(make_groups(), **settings)


def run(optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        set_gradients(optimizer.param_groups, step)
        optimizer.step()


def test_five_steps_equal_torch(pair: tuple[MegatronAdamW, torch.optim.AdamW]) -> None:
    ours, theirs = pair
    untouched = parameters(ours.param_groups)[-1].clone()
    for step in range(5):
        run(ours, range(step, step + 1))
        run(theirs, range(step, step + 1))
        assert_same(ours.param_groups, theirs.param_groups)
    assert torch.equal(parameters(ours.param_groups)[-1], untouched)
    for mine, torchs in zip(
        parameters(ours.param_groups)[:-1], parameters(theirs.param_groups)[:-1], strict=True
    ):
        assert mine.shape == torchs.shape
    moments = [ours.state[p]["exp_avg_sq"] for g in ours.param_groups[:-1] for p in g["params"]]
    expected = [
        theirs.state[p]["exp_avg_sq"] for g in theirs.param_groups[:-1] for p in g["params"]
    ]
    torch.testing.assert_close(moments, expected)


def test_five_steps_without_the_fused_kernel_are_those_of_torch_to_the_bit(
    pair: tuple[MegatronAdamW, torch.optim.AdamW], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, "optimizer")
    for optimizer in pair:
        run(optimizer, range(5))
    ours, theirs = (parameters(optimizer.param_groups) for optimizer in pair)
    assert all(map(torch.equal, ours, theirs))


def test_learning_rate_of_a_scheduler_is_used(
    pair: tuple[MegatronAdamW, torch.optim.AdamW],
) -> None:
    for step in range(3):
        for optimizer in pair:
            for group in optimizer.param_groups:
                group["lr"] = 0.1 / (step + 1)
            run(optimizer, range(step, step + 1))
    assert_same(pair[0].param_groups, pair[1].param_groups)


def test_empty_optimizer_steps_and_saves() -> None:
    empty = MegatronAdamW([{"params": []}], lr=0.1)
    empty.step()
    empty.step()
    saved = empty.state_dict()
    steps = {float(entry["step"]) for entry in saved["state"].values()}
    assert steps == {2.0}
    other = MegatronAdamW([{"params": []}], lr=0.1)
    other.load_state_dict(saved)
    assert other.state == {}
    assert other.param_groups[0]["step"] == 2.0


def test_parameter_without_elements_is_harmless() -> None:
    parameter = torch.empty(0, requires_grad=True)
    parameter.grad = torch.empty(0)
    optimizer = MegatronAdamW([parameter], lr=0.1)
    optimizer.step()
    assert parameter.numel() == 0


def test_state_dict_holds_one_step_value(
    pair: tuple[MegatronAdamW, torch.optim.AdamW],
) -> None:
    ours, _ = pair
    before = ours.state_dict()
    assert {float(entry["step"]) for entry in before["state"].values()} == {0.0}
    run(ours, range(3))
    after = ours.state_dict()
    assert {float(entry["step"]) for entry in after["state"].values()} == {3.0}
    # What Megatron reads of the state is not what the optimizer keeps.
    assert all("step" not in state for state in ours.state.values())


def test_round_trip_continues_as_if_uninterrupted(
    pair: tuple[MegatronAdamW, torch.optim.AdamW],
) -> None:
    straight, theirs = pair
    run(straight, range(5))
    run(theirs, range(5))
    first = MegatronAdamW(make_groups(), lr=0.02, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-6)
    run(first, range(2))
    saved = copy.deepcopy(first.state_dict())
    second = MegatronAdamW(copy.deepcopy(first.param_groups), lr=9.0)
    for group in second.param_groups:
        group["step"] = 0.0
    second.load_state_dict(saved)
    run(second, range(2, 5))
    for a, b in zip(
        parameters(second.param_groups), parameters(straight.param_groups), strict=True
    ):
        assert torch.equal(a, b)
    assert_same(second.param_groups, theirs.param_groups)


def test_pickled_optimizer_continues(pair: tuple[MegatronAdamW, torch.optim.AdamW]) -> None:
    ours, _ = pair
    run(ours, range(2))
    again = copy.deepcopy(ours)
    run(ours, range(2, 3))
    run(again, range(2, 3))
    assert_same(again.param_groups, ours.param_groups)
