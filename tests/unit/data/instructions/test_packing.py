"""Rows of samples: each sample once and whole, in few rows, and what is cut or left out is told."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_megatron.config import apply_overrides, load_config
from moe_megatron.data.instructions.packing import best_fit, packed_rows
from moe_megatron.data.instructions.stored import StoredSamples
from moe_megatron.data.instructions.suitable import check_settings, rows_of_splits
from moe_megatron.errors import ConfigError, DataError
from moe_megatron.run.prepared_data import open_instruction_writer


def slow_best_fit(lengths, room):
    """The obvious twin: look at every row."""
    rows = []
    for number in sorted(range(len(lengths)), key=lambda it: (-lengths[it], it)):
        fitting = [
            (room - sum(lengths[it] for it in row), row)
            for row in rows
            if sum(lengths[it] for it in row) + lengths[number] <= room
        ]
        if fitting:
            min(fitting, key=lambda it: it[0])[1].append(number)
        else:
            rows.append([number])
    return rows


@given(st.lists(st.integers(1, 20), max_size=40))
def test_rows_hold_each_thing_once_and_are_as_full_as_those_of_the_twin(lengths):
    rows = best_fit(lengths, 20)
    assert sorted(it for row in rows for it in row) == list(range(len(lengths)))
    sums = sorted(sum(lengths[it] for it in row) for row in rows)
    assert all(total <= 20 for total in sums)
    assert sums == sorted(sum(lengths[it] for it in r) for r in slow_best_fit(lengths, 20))


@pytest.fixture
def stored(tmp_path):
    """Four samples: of 5, 9 and 3 tokens, and one that is learned late, at its tenth token."""
    writer = open_instruction_writer(tmp_path / "chat", 100)
    for question, answer in ((2, 3), (4, 5), (1, 2), (9, 2)):
        tokens = list(range(question + answer))
        writer.add_pieces(tokens, [question, answer], [False, True])
    writer.finalize()
    return StoredSamples(tmp_path / "chat")


def test_samples_take_a_place_less_than_they_have_tokens(stored):
    packed = packed_rows(stored, 10)
    assert [sorted(row) for row in packed.rows] == [[3], [1, 2], [0]]
    assert packed.filled == pytest.approx((4 + 8 + 2 + 10) / 30)
    assert packed.lines == ()


def test_what_is_longer_than_a_row_is_cut_or_left_out_and_told(stored):
    packed = packed_rows(stored, 8)
    assert sorted(it for row in packed.rows for it in row) == [0, 1, 2]
    assert (packed.cut, packed.left_out) == (0, 1)
    packed = packed_rows(stored, 5)
    assert (packed.cut, packed.left_out) == (1, 1)
    assert packed.lines[0].startswith("1 samples are longer than a row")


def test_no_answer_within_a_row_is_refused(stored):
    with pytest.raises(DataError, match=r"none of 1 samples .* within a row of 8 tokens"):
        packed_rows(stored, 8, np.array([3]))
    with pytest.raises(DataError, match="none of 1 samples"):
        rows_of_splits([stored.prefix], 8, (0.75, 0.25, 0.0))
    assert len(rows_of_splits([stored.prefix], 8, (1.0, 0.0, 0.0))) == 1


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"parallel.context_parallel_size": 2}, "context_parallel_size .2. cuts sequences"),
        ({"model.num_prediction_layers": 1}, "multi-token prediction"),
        (
            {"training.recompute": "full", "parallel.pipeline_parallel_size": 2},
            "recompute 'full' with a pipeline",
        ),
    ],
)
def test_settings_that_do_not_go_with_samples_are_refused(overrides, told):
    with pytest.raises(ConfigError, match=told):
        check_settings(apply_overrides(load_config("test_tiny"), overrides))
