import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from moe_megatron.errors import DataError
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot

Make = Callable[..., RoutingSnapshot]


def through_json(snapshot: RoutingSnapshot) -> RoutingSnapshot:
    text = json.dumps(snapshot.to_json_dict(), allow_nan=False)
    return RoutingSnapshot.from_json_dict(json.loads(text))


def test_json_round_trip_is_exact(make_snapshot: Make) -> None:
    snapshot = make_snapshot(
        entropy=np.array([0.1 + 0.2, math.nan]), z_loss=np.array([math.inf, -math.inf])
    )
    back = through_json(snapshot)
    assert back.layers == snapshot.layers
    assert (back.step, back.tokens, back.top_k) == (snapshot.step, snapshot.tokens, snapshot.top_k)
    for name in ("tokens_per_expert", "dropped", "entropy", "aux_loss", "z_loss"):
        mine, theirs = getattr(snapshot, name), getattr(back, name)
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)


def test_json_keeps_counts_beyond_float_precision(make_snapshot: Make) -> None:
    big = 2**53 + 1
    snapshot = make_snapshot(
        tokens=big,
        top_k=1,
        tokens_per_expert=np.array([[big, 0], [0, big]]),
        dropped=np.zeros(2, dtype=np.int64),
    )
    assert through_json(snapshot).tokens_per_expert.tolist() == [[big, 0], [0, big]]


def test_json_writes_nan_as_null(make_snapshot: Make) -> None:
    data = make_snapshot(entropy=np.array([math.nan, 0.5])).to_json_dict()
    assert data["entropy"] == [None, 0.5]
    assert all(type(count) is int for row in data["tokens_per_expert"] for count in row)


def test_arrays_are_read_only_copies(make_snapshot: Make) -> None:
    dropped = np.zeros(2, dtype=np.int64)
    snapshot = make_snapshot(tokens_per_expert=np.full((2, 4), 25), dropped=dropped)
    dropped[0] = 9
    assert snapshot.dropped.tolist() == [0, 0]
    with pytest.raises(ValueError, match="read-only"):
        snapshot.tokens_per_expert[0, 0] = 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens": 51}, r"layer 2: \d+ assignments reached .* 51 \* 2 = 102"),
        ({"tokens_per_expert": np.zeros((2, 4))}, "must be int64"),
        ({"tokens_per_expert": np.zeros((3, 4), dtype=np.int64)}, r"\[2, E\], got int64 \[3, 4\]"),
        ({"dropped": np.zeros(3, dtype=np.int64)}, r"dropped must be int64 \[2\]"),
        ({"entropy": np.zeros(2, dtype=np.float32)}, "entropy must be float64"),
        ({"layers": (3, 2)}, "increasing 1-based"),
        ({"layers": ()}, "at least one"),
        ({"top_k": 5}, r"top_k \(5\) exceeds the number of experts \(4\)"),
        ({"step": -1}, "step=-1"),
    ],
)
def test_construction_inconsistent_is_our_mistake(
    make_snapshot: Make, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        make_snapshot(**fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 49}, "inconsistent routing snapshot: layer 2"),
        ({"dropped": [-1, 0]}, "must not be negative"),
        ({"tokens": 50.0}, "tokens must be an integer >= 0, got 50.0"),
        ({"tokens": True}, "tokens must be an integer"),
        ({"tokens_per_expert": [[1, 2], [3]]}, "equally long lists of integers"),
        ({"tokens_per_expert": [[1.5] * 4] * 2}, "equally long lists of integers"),
        ({"entropy": ["high", 1.0]}, "entropy must be a number"),
        ({"entropy": 3}, "entropy must be a list of numbers, got 3"),
        ({"surprise": 1}, r"unknown field\(s\): surprise"),
    ],
)
def test_from_json_dict_wrong_data_names_the_field(
    make_snapshot: Make, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        RoutingSnapshot.from_json_dict(make_snapshot().to_json_dict() | change)


def test_from_json_dict_missing_field_or_no_object_is_data_error(make_snapshot: Make) -> None:
    data = make_snapshot().to_json_dict()
    del data["dropped"]
    with pytest.raises(DataError, match=r"missing field\(s\): dropped"):
        RoutingSnapshot.from_json_dict(data)
    with pytest.raises(DataError, match=r"expected a JSON object, got \[1\]"):
        RoutingSnapshot.from_json_dict([1])


def test_measures_are_those_of_the_counts(make_snapshot: Make) -> None:
    snapshot = make_snapshot(
        tokens_per_expert=np.array([[60, 20, 10, 0], [25, 25, 25, 25]]),
        dropped=np.array([10, 0]),
    )
    assert snapshot.num_experts == 4
    assert snapshot.imbalance.tolist() == pytest.approx([60 / 22.5, 1.0])
    assert snapshot.drop_rate.tolist() == pytest.approx([0.1, 0.0])
    assert snapshot.load_cv[1] == snapshot.load_variance[1] == 0.0
    assert snapshot.dead_expert_mask().tolist() == [[False, False, False, True], [False] * 4]
    np.testing.assert_allclose(snapshot.entropy_ratio, snapshot.entropy / math.log(4))
