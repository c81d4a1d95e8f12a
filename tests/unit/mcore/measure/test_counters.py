"""The counters of a step, alone and over two real processes."""

import numpy as np
import pytest
import torch
import torch.distributed as dist

from moe_megatron.errors import ConfigError
from moe_megatron.mcore.measure.counters import RoutingCounters, RoutingRow
from moe_megatron.mcore.measure.rank_load import RankValues
from moe_megatron.telemetry.catalog import registered
from moe_megatron.telemetry.quantity import Quantity
from moe_megatron.telemetry.sinks.health import SinkState
from moe_megatron.testing.distributed import run_distributed

LAYERS, EXPERTS = (2, 5), 3
CPU = torch.device("cpu")


def fill(row: RoutingRow, base: int) -> None:
    row.tokens_per_expert.add_(torch.tensor([base, base + 1, base + 2]))
    row.tokens.add_(10 * base)
    row.beyond_top_k.add_(base - 4)
    row.prob_sums.add_(torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64) * base)
    for place, total in enumerate(row.sums):
        total.add_(0.5 ** (place + 1) * base)


def test_rows_are_views_that_do_not_overlap():
    counters = RoutingCounters(LAYERS, EXPERTS, CPU)
    for layer in LAYERS:
        fill(counters.row(layer), layer)
    totals = counters.collect(contributes=True, loss=torch.tensor(2.5)).get()
    assert totals.tokens_per_expert.tolist() == [[2, 3, 4], [5, 6, 7]]
    assert totals.tokens_per_expert.dtype == totals.tokens.dtype == np.int64
    assert totals.tokens.tolist() == [20, 50]
    assert totals.prob_sums == pytest.approx(np.array([[0.2, 0.4, 0.6], [0.5, 1.0, 1.5]]))
    assert totals.beyond_top_k.tolist() == [-2, 1]
    assert {name: values.tolist() for name, values in totals.sums.items()} == {
        "entropy": [1.0, 2.5],
        "z_loss": [0.5, 1.25],
    }
    assert totals.loss == 2.5


def quantity(name: str) -> Quantity:
    measure = lambda routed: routed.entropy_T  # noqa: E731
    return Quantity(name=name, help="For a test.", title=name, measure=measure)


@pytest.mark.parametrize("names", [[], ["one"], ["one", "two", "three", "four"]])
@pytest.mark.parametrize("layers", [(), LAYERS])
def test_columns_follow_the_quantities_and_leave_the_loss_alone(names, layers):
    experts = EXPERTS if layers else 0
    counters = RoutingCounters(layers, experts, CPU, [quantity(name) for name in names])
    for layer in layers:
        assert [one.name for one in counters.row(layer).quantities] == names
        fill(counters.row(layer), layer)
    totals = counters.collect(contributes=True, loss=torch.tensor(2.5)).get()
    assert totals.loss == 2.5
    assert {name: values.tolist() for name, values in totals.sums.items()} == {
        name: [0.5 ** (place + 1) * layer for layer in layers] for place, name in enumerate(names)
    }


def test_derived_quantities_take_no_column():
    with registered(
        Quantity(name="one", help="For a test.", title="One", derive=lambda sums: sums.prob_sums)
    ):
        row = RoutingCounters(LAYERS, EXPERTS, CPU).row(2)
    assert [one.name for one in row.quantities] == ["entropy", "z_loss"]


def test_layer_without_a_row_is_our_mistake():
    with pytest.raises(ValueError, match=r"not in tuple"):
        RoutingCounters(LAYERS, EXPERTS, CPU).row(1)


def test_collect_resets_and_later_counts_do_not_reach_what_was_collected():
    counters = RoutingCounters(LAYERS, EXPERTS, CPU)
    row = counters.row(2)
    fill(row, 1)
    pending = counters.collect(contributes=True, loss=torch.tensor(1.0))
    fill(row, 100)
    assert pending.get().tokens.tolist() == [10, 0]
    second = counters.collect(contributes=True, loss=None).get()
    assert second.tokens.tolist() == [1000, 0]
    assert second.loss is None
    assert counters.collect(contributes=True, loss=None).get().tokens.tolist() == [0, 0]


def test_rank_that_repeats_anothers_tokens_contributes_only_its_loss():
    counters = RoutingCounters(LAYERS, EXPERTS, CPU)
    fill(counters.row(2), 3)
    totals = counters.collect(contributes=False, loss=torch.tensor([4.0])).get()
    assert totals.tokens.sum() == totals.tokens_per_expert.sum() == 0
    assert totals.prob_sums.sum() == sum(map(np.sum, totals.sums.values())) == 0.0
    assert totals.beyond_top_k.sum() == 0
    assert totals.loss == 4.0
    # What it saw is gone, too.
    assert counters.collect(contributes=True, loss=None).get().tokens.sum() == 0


def test_dense_model_reduces_the_loss_alone():
    totals = RoutingCounters((), 0, CPU).collect(contributes=True, loss=torch.tensor(3.0)).get()
    assert totals.loss == 3.0
    assert totals.tokens.shape == (0,)
    assert totals.tokens_per_expert.shape == (0, 0)


def test_counts_are_exact_where_a_float_is_not():
    counters = RoutingCounters((1,), 1, CPU)
    row = counters.row(1)
    row.tokens_per_expert.add_(2**53)
    row.tokens_per_expert.add_(1)
    totals = counters.collect(contributes=True, loss=None).get()
    assert totals.tokens_per_expert.item() == 2**53 + 1


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_loss_that_is_no_number_is_passed_on(loss):
    totals = RoutingCounters((), 0, CPU).collect(contributes=True, loss=torch.tensor(loss)).get()
    assert totals.loss == pytest.approx(loss, nan_ok=True)


def count_together() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    counters = RoutingCounters(LAYERS, EXPERTS, CPU)
    # Pipeline: each rank owns one layer; only the last one knows the loss.
    fill(counters.row(LAYERS[rank]), rank + 1)
    first = counters.collect(contributes=True, loss=torch.tensor(7.0) if rank else None)
    # The next step starts before the first is read. Now both own layer 2, as copies.
    fill(counters.row(2), 5)
    second = counters.collect(contributes=rank == 0, loss=torch.tensor(2.0 + rank))
    totals = first.get()
    assert totals.tokens.tolist() == [10, 20]
    assert totals.tokens_per_expert.tolist() == [[1, 2, 3], [2, 3, 4]]
    assert totals.sums["entropy"].tolist() == [0.5, 1.0]
    assert totals.beyond_top_k.tolist() == [-3, -2]
    assert totals.loss == 7.0
    totals = second.get()
    assert totals.tokens.tolist() == [50, 0]
    assert totals.loss == 2.5
    sinks = {"wandb": SinkState(broken=True, outages=1, dropped=3), "mine": SinkState(outages=2)}
    own = RankValues(
        compute_seconds=0.5 + rank,
        memory_bytes=2.0**40 + rank,
        peak_bytes=2.0**41 + rank,
        sinks=sinks,
    )
    totals = counters.collect(contributes=rank == 0, loss=None, own=own).get()
    assert totals.loss is None
    assert totals.rank_compute_seconds.tolist() == [0.5, 1.5]
    assert totals.rank_memory_bytes.tolist() == [2.0**40, 2.0**40 + 1]
    assert totals.rank_peak_bytes.tolist() == [2.0**41, 2.0**41 + 1]
    # The state of the first rank is not sent: the exporter, which is there, knows it.
    assert totals.other_sinks == {"wandb": sinks["wandb"], "other": sinks["mine"]}
    counters.check_same_on_all_ranks()
    order = ["one", "two"] if rank else ["two", "one"]
    other = RoutingCounters(LAYERS, EXPERTS, CPU, [quantity(name) for name in order])
    with pytest.raises(ConfigError, match=f"measure different quantities; .*{', '.join(order)}\\."):
        other.check_same_on_all_ranks()
    dist.destroy_process_group()


@pytest.mark.parametrize("layers", [(), (2, 3)])
def test_values_of_the_rank_travel_along(layers):
    counters = RoutingCounters(layers, 3 if layers else 0, torch.device("cpu"))
    own = RankValues(compute_seconds=0.25, memory_bytes=7.0)
    totals = counters.collect(contributes=False, loss=torch.tensor(4.0), own=own).get()
    assert (totals.rank_compute_seconds, totals.rank_memory_bytes) == ([0.25], [7.0])
    assert totals.loss == 4.0
    assert counters.collect(contributes=True, loss=None).get().rank_memory_bytes == [0.0]


@pytest.mark.distributed
def test_two_processes_sum_their_counts_and_average_their_losses():
    run_distributed(count_together)
