"""The table of steps against plain lists, also when it is full or a run goes back."""

import math
from dataclasses import replace

import numpy as np
import pytest

from moe_megatron.telemetry.values.records import EvalRecord, StepRecord
from moe_megatron.testing.written_run import step_record
from moe_megatron.webapp.columns import columns
from moe_megatron.webapp.step_table import StepTable


def slow_means(steps: list[int], name: str) -> float:
    values = [value for step in steps if (value := getattr(step_record(step), name)) is not None]
    return sum(values) / len(values) if values else math.nan


def filled(steps: int, most_rows: int = 2**17) -> StepTable:
    table = StepTable(most_rows)
    for step in range(1, steps + 1):
        table.add(step_record(step))
    return table


@pytest.mark.parametrize("most", [1, 4, 16, 100])
def test_means_of_columns_are_those_of_their_steps(most: int) -> None:
    table, spans = filled(61), columns(1, 61, most)
    means = table.means(spans)
    for name in ("loss", "learning_rate", "grad_norm"):
        expected = [slow_means(list(range(a, b + 1)), name) for a, b in spans]
        np.testing.assert_allclose(getattr(means, name), expected)
    assert set(means.tokens_per_second.tolist()) == {2000.0}


def test_a_full_table_merges_neighbours_and_keeps_the_means() -> None:
    table, spans = filled(1000, most_rows=64), columns(1, 1000, 8)
    assert len(table._rows) <= 1024
    assert table._size <= 64
    expected = [slow_means(list(range(a, b + 1)), "loss") for a, b in spans]
    np.testing.assert_allclose(table.means(spans).loss, expected)


def test_a_step_that_comes_again_takes_back_those_after_it() -> None:
    table = filled(30)
    for step in range(21, 26):
        table.add(step_record(step))
    assert table.last_step == 25
    spans = columns(1, 25, 4)
    expected = [slow_means(list(range(a, b + 1)), "loss") for a, b in spans]
    np.testing.assert_allclose(table.means(spans).loss, expected)


def test_facts_are_those_of_the_last_records() -> None:
    table = filled(3)
    table.add(EvalRecord(step=3, split="validation", loss=2.0))
    assert (table.first_step, table.last_step, table.total_steps) == (1, 3, 300)
    assert table.loss == 3.0
    assert [it.loss for it in table.evaluations] == [2.0]


@pytest.mark.parametrize("most_rows", [2**17, 64])
def test_time_until_a_step_is_that_of_the_steps_up_to_it(most_rows: int) -> None:
    table = filled(1000, most_rows=most_rows)
    width = table._width
    until = table.seconds_until([0, 7, 500, 1000, 9000])
    expected = [0.5 * (step // width * width) for step in (0, 7, 500)]
    assert until.tolist() == [*expected, 500.0, 500.0]


def timed(step: int, *seconds: float) -> StepRecord:
    return replace(
        step_record(step),
        memory_bytes=step * 1000,
        peak_memory_bytes=(step % 7) * 9000,
        expert_rank_seconds=seconds,
    )


@pytest.mark.parametrize("most_rows", [2**17, 16])
def test_memory_and_times_of_ranks_are_means_of_the_steps_that_have_them(most_rows: int) -> None:
    table = StepTable(most_rows)
    for step in range(1, 65):
        table.add(timed(step, step, 2.0 * step) if step > 32 else timed(step))
    means = table.means([(1, 32), (33, 64)])
    assert means.memory_bytes.tolist() == [16_500, 48_500]
    assert means.peak_memory_bytes.tolist() == [54_000, 54_000]
    assert np.isnan(means.expert_rank_seconds[0]).all()
    assert means.expert_rank_seconds[1].tolist() == [48.5, 97.0]


def test_run_that_goes_on_with_other_ranks_forgets_the_times_of_those_before() -> None:
    table = StepTable()
    for step in range(1, 5):
        table.add(timed(step, 1.0, 2.0) if step < 3 else timed(step, 3.0, 4.0, 5.0))
    assert np.isnan(table.means([(1, 2)]).expert_rank_seconds).all()
    assert table.means([(1, 4)]).expert_rank_seconds.tolist() == [[3.0, 4.0, 5.0]]
    assert table.means([(1, 4)]).loss.tolist() == [slow_means([1, 2, 3, 4], "loss")]
