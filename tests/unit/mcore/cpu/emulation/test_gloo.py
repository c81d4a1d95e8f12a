"""Collectives over two real processes against slow, obvious twins.

Through shared memory, through Gloo, and without accelerators, where Gloo adds the parts as well.
"""

import os
import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from moe_megatron.mcore.cpu.emulation import gloo
from moe_megatron.mcore.cpu.fast import SWITCH
from moe_megatron.mcore.cpu.fast.shared_memory import channel_of
from moe_megatron.testing.distributed import run_distributed


def value_of(rank: int, *shape: int) -> torch.Tensor:
    """What a rank contributes; every rank can compute that of the others."""
    generator = torch.Generator().manual_seed(10 + rank)
    return torch.randn(*shape, generator=generator)


def finish(work: Any) -> None:
    """Waits for an asynchronous call; a synchronous one returned None."""
    if work is not None:
        work.wait()


def check_all_gather(rank: int, async_op: bool) -> None:
    for shapes in ([(3, 2), (3, 2)], [(3, 2), (1, 2)], [(0, 2), (4, 2)]):
        received = [torch.full(shape, 9.0) for shape in shapes]
        finish(gloo.all_gather(received, value_of(rank, *shapes[rank]), async_op=async_op))
        for source, tensor in enumerate(received):
            assert torch.equal(tensor, value_of(source, *shapes[source])), shapes


def check_reduce_scatter(rank: int, async_op: bool) -> None:
    for op, scale in ((dist.ReduceOp.SUM, 1.0), (dist.ReduceOp.AVG, 0.5)):
        for shapes in ([(3,), (3,)], [(1,), (4,)]):
            inputs = {
                r: [value_of(10 * r + part, *shapes[part]) for part in (0, 1)] for r in (0, 1)
            }
            before = [tensor.clone() for tensor in inputs[rank]]
            output = torch.empty(shapes[rank])
            finish(gloo.reduce_scatter(output, inputs[rank], op=op, async_op=async_op))
            expected = scale * (inputs[0][rank] + inputs[1][rank])
            torch.testing.assert_close(output, expected)
            assert all(map(torch.equal, inputs[rank], before))


def check_reduce_scatter_of_largest(rank: int, async_op: bool) -> None:
    inputs = {r: [value_of(10 * r + part, part + 2) for part in (0, 1)] for r in (0, 1)}
    output = torch.empty(rank + 2)
    finish(gloo.reduce_scatter(output, inputs[rank], op=dist.ReduceOp.MAX, async_op=async_op))
    assert torch.equal(output, torch.maximum(inputs[0][rank], inputs[1][rank]))


def check_reduce_scatter_tensor(rank: int, async_op: bool) -> None:
    for op, scale in ((dist.ReduceOp.SUM, 1.0), (dist.ReduceOp.AVG, 0.5)):
        output = torch.empty(2, 3)
        given = value_of(rank, 4, 3)
        finish(gloo.reduce_scatter_tensor(output, given, op=op, async_op=async_op))
        expected = scale * (value_of(0, 4, 3) + value_of(1, 4, 3))[2 * rank : 2 * rank + 2]
        torch.testing.assert_close(output, expected)


def check_reduce_scatter_tensor_of_largest(rank: int, async_op: bool) -> None:
    output, largest = torch.empty(2, 3), dist.ReduceOp.MAX
    work = gloo.reduce_scatter_tensor(output, value_of(rank, 4, 3), op=largest, async_op=async_op)
    finish(work)
    expected = torch.maximum(value_of(0, 4, 3), value_of(1, 4, 3))[2 * rank : 2 * rank + 2]
    assert torch.equal(output, expected)


def check_tensors_in_place(rank: int, async_op: bool) -> None:
    """As Megatron's gradient buffers: each rank's output is its part of the input."""
    buffer = value_of(rank, 4, 3)
    own = buffer[2 * rank : 2 * rank + 2]
    finish(gloo.reduce_scatter_tensor(own, buffer, async_op=async_op))
    total = value_of(0, 4, 3) + value_of(1, 4, 3)
    torch.testing.assert_close(own, total[2 * rank : 2 * rank + 2])
    finish(gloo.all_gather_into_tensor(buffer, own, async_op=async_op))
    torch.testing.assert_close(buffer, total)


def check_all_gather_into_tensor(rank: int, async_op: bool) -> None:
    output = torch.empty(4, 3)
    finish(gloo.all_gather_into_tensor(output, value_of(rank, 2, 3), async_op=async_op))
    assert torch.equal(output, torch.cat((value_of(0, 2, 3), value_of(1, 2, 3))))


def check_all_reduce(rank: int, async_op: bool) -> None:
    total = value_of(0, 5) + value_of(1, 5)
    expected = {
        dist.ReduceOp.SUM: total,
        dist.ReduceOp.AVG: total / 2,
        dist.ReduceOp.MAX: torch.maximum(value_of(0, 5), value_of(1, 5)),
    }
    for op, result in expected.items():
        tensor = value_of(rank, 5)
        finish(gloo.all_reduce(tensor, op=op, async_op=async_op))
        torch.testing.assert_close(tensor, result)


def check_all_to_all(rank: int, async_op: bool) -> None:
    # sizes[a][b]: rows that rank a sends to rank b.
    sizes = [[1, 3], [2, 0]]
    given = value_of(rank, sum(sizes[rank]), 2)
    sends, receives = sizes[rank], [sizes[source][rank] for source in (0, 1)]
    pieces = []
    for source in (0, 1):
        whole = value_of(source, sum(sizes[source]), 2)
        start = sum(sizes[source][:rank])
        pieces.append(whole[start : start + sizes[source][rank]])
    for kind in (list, tuple, torch.tensor):
        output = torch.empty(sum(receives), 2)
        finish(
            gloo.all_to_all_single(output, given, kind(receives), kind(sends), async_op=async_op)
        )
        assert torch.equal(output, torch.cat(pieces))
    output = torch.empty(2, 2)
    finish(gloo.all_to_all_single(output, value_of(rank, 2, 2), async_op=async_op))
    assert torch.equal(output, torch.stack([value_of(s, 2, 2)[rank] for s in (0, 1)]))


def check_types_of_all_to_all(rank: int, async_op: bool) -> None:
    for dtype in (torch.bfloat16, torch.float64, torch.int64, torch.uint8):
        given = [value_of(source, 6, 5).mul(9).abs().to(dtype) for source in (0, 1)]
        output = torch.empty(6, 5, dtype=dtype)
        finish(gloo.all_to_all_single(output, given[rank], async_op=async_op))
        expected = torch.cat([part[3 * rank : 3 * rank + 3] for part in given])
        assert torch.equal(output, expected), dtype


def check_long_tensors(rank: int, async_op: bool) -> None:
    """Longer than one piece, and not by a whole number of them."""
    length = gloo._PIECE // 4 + 1001
    values = [value_of(source, 2 * length) for source in (0, 1)]
    total = values[0] + values[1]
    tensor = values[rank].clone()
    finish(gloo.all_reduce(tensor, async_op=async_op))
    assert torch.equal(tensor, total)
    part = torch.empty(length)
    finish(gloo.reduce_scatter_tensor(part, values[rank], async_op=async_op))
    assert torch.equal(part, total[rank * length : (rank + 1) * length])
    gathered = torch.empty(2 * length)
    finish(gloo.all_gather_into_tensor(gathered, part, async_op=async_op))
    assert torch.equal(gathered, total)


def check_first_call_among_gathers_that_are_collected(rank: int, async_op: bool) -> None:
    """Megatron's gradient buffers: connecting may not wait for what is put off."""
    group = dist.new_group([0, 1])
    with dist._coalescing_manager(group, async_ops=async_op) as collected:
        part = torch.empty(2)
        finish(gloo.reduce_scatter_tensor(part, value_of(rank, 4), group=group))
    collected.wait()
    torch.testing.assert_close(part, (value_of(0, 4) + value_of(1, 4))[2 * rank : 2 * rank + 2])


def check_subgroup(rank: int, async_op: bool) -> None:
    """Ranks inside a group are not those of the world."""
    group = dist.new_group([1])
    if rank == 1:
        received = [torch.zeros(2)]
        finish(gloo.all_gather(received, torch.ones(2), group=group, async_op=async_op))
        assert received[0].tolist() == [1.0, 1.0]
        output = torch.zeros(2)
        given = [torch.full((2,), 3.0)]
        average = dist.ReduceOp.AVG
        finish(gloo.reduce_scatter(output, given, op=average, group=group, async_op=async_op))
        assert output.tolist() == [3.0, 3.0]
        for one in (gloo.reduce_scatter_tensor, gloo.all_gather_into_tensor):
            output = torch.zeros(2)
            finish(one(output, torch.full((2,), 5.0), group=group, async_op=async_op))
            assert output.tolist() == [5.0, 5.0]
            finish(one(output, output, group=group, async_op=async_op))
            assert output.tolist() == [5.0, 5.0]


CHECKS: dict[str, Callable[[int, bool], None]] = {
    name.removeprefix("check_"): check
    for name, check in list(globals().items())
    if name.startswith("check_")
}


def run_checks() -> dict[str, str]:
    """What was wrong with each check on this rank, "" where nothing was."""
    dist.init_process_group("gloo")
    # Otherwise both runs would show the same.
    assert (channel_of(None) is not None) == (os.environ[SWITCH] == "")
    found = dict.fromkeys(CHECKS, "")
    for name, check in CHECKS.items():
        for async_op in (False, True):
            try:
                check(dist.get_rank(), async_op)
            except AssertionError:
                found[name] += traceback.format_exc()
    dist.barrier()  # the store ends with rank 0, and a new group of the others needs it
    dist.destroy_process_group()
    return found


@pytest.fixture(
    scope="module",
    params=["", "shared_memory", "1"],
    ids=["shared_memory", "gloo", "plain_gloo"],
)
def answers(request: pytest.FixtureRequest) -> list[dict[str, str]]:
    """What each of two processes found."""
    return run_distributed(run_checks, environment={SWITCH: request.param})


@pytest.mark.distributed
@pytest.mark.parametrize("name", CHECKS)
def test_collective_over_two_processes_equals_its_slow_twin(
    name: str, answers: list[dict[str, str]]
) -> None:
    assert [answer[name] for answer in answers] == ["", ""]


def test_every_replaced_name_exists_in_torch_with_its_parameters() -> None:
    import inspect

    for name, ours in gloo.names().items():
        real = inspect.signature(getattr(dist, name)).parameters
        for position, (mine, its) in enumerate(
            zip(inspect.signature(ours).parameters.values(), real.values(), strict=False)
        ):
            assert mine.default == its.default, (name, position)
