"""What telemetry adds to a step never waits for a GPU: shown without one.

The tensors are on a GPU that does not exist and have no values: whatever would read one (`item`,
`tolist`, a condition) fails, and so does a copy to the host that the host would wait for.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from moe_megatron.config import MoEConfig
from moe_megatron.mcore.measure.counters import RoutingCounters
from moe_megatron.mcore.measure.rank_load import RankValues
from moe_megatron.mcore.measure.routed import Routed, count
from moe_megatron.routing import bind

EXPERTS, TOP_K, TOKENS = 6, 2, 30
GPU = torch.device("cuda", 0)
SCORES = ("softmax", "sigmoid", "sqrtsoftplus")


class BlockingCopyError(Exception):
    """The host would wait for the device."""


class NoBlockingCopies(TorchDispatchMode):
    """Refuses copies from the GPU that are not asynchronous."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default:
            target, waits = kwargs.get("device"), not kwargs.get("non_blocking", False)
            if args[0].is_cuda and target is not None and target.type == "cpu" and waits:
                raise BlockingCopyError(func)
        if func is torch.ops.aten.copy_.default:
            waits = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
            if args[1].is_cuda and not args[0].is_cuda and waits:
                raise BlockingCopyError(func)
        return func(*args, **kwargs)


class Event:
    """Stands for an event of the device; says whether anybody waited for it."""

    waited = False

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        self.waited = True


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    with FakeTensorMode(), NoBlockingCopies():
        yield


def routed(score_function: str, asked: torch.Tensor | None = None) -> Routed:
    """Some decisions, on the GPU that is none."""
    moe = MoEConfig(num_experts=EXPERTS, router={"score_function": score_function})
    logits = torch.randn(TOKENS, EXPERTS, device=GPU)
    routing_map = torch.zeros(TOKENS, EXPERTS, dtype=torch.bool, device=GPU)
    return Routed(logits, logits, routing_map, route=bind(moe), assigned_map_TE=asked)


def padding(masked: bool) -> torch.Tensor | None:
    return torch.zeros(TOKENS, dtype=torch.bool, device=GPU) if masked else None


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: bool(x.any()),
        lambda x: x.cpu(),
        lambda x: torch.zeros(3).copy_(x),
    ],
)
def test_waiting_is_noticed(no_gpu: None, read: Any) -> None:
    with pytest.raises((DataDependentOutputException, BlockingCopyError)):
        read(torch.ones(3, device=GPU))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("score_function", SCORES)
def test_counting_a_routers_decisions_does_not_wait(
    no_gpu: None, score_function: str, masked: bool
) -> None:
    row = RoutingCounters((1, 2), EXPERTS, GPU).row(2)
    count(row, routed(score_function), padding(masked))
    assert row.tokens_per_expert.device == GPU


@pytest.mark.parametrize("masked", [False, True])
def test_counting_different_numbers_of_experts_a_token_does_not_wait(
    no_gpu: None, masked: bool
) -> None:
    row = RoutingCounters((1, 2), EXPERTS, GPU).row(2)
    asked = torch.zeros(TOKENS, EXPERTS, dtype=torch.bool, device=GPU)
    count(row, routed("softmax", asked), padding(masked))
    assert row.beyond_top_k.device == GPU


@pytest.mark.parametrize("contributes", [False, True])
def test_collecting_a_step_does_not_wait(no_gpu: None, contributes: bool) -> None:
    counters = RoutingCounters((1, 2), EXPERTS, GPU)
    own = RankValues(compute_seconds=1.0, memory_bytes=2.0)
    loss = torch.ones((), device=GPU)
    sums = counters.collect(contributes=contributes, loss=loss, own=own)._sums
    assert sums._copied is not None
    assert not sums._copied.waited
    assert [tensor.device.type for tensor in sums._host] == ["cpu", "cpu"]
