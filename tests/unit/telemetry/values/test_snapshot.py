import json
import math
import pickle
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
        per_layer={
            "entropy": np.array([0.1 + 0.2, math.nan]),
            "z_loss": np.array([math.inf, -math.inf]),
        }
    )
    back = through_json(snapshot)
    assert back.layers == snapshot.layers
    assert (back.step, back.tokens, back.top_k) == (snapshot.step, snapshot.tokens, snapshot.top_k)
    for name in ("tokens_per_expert", "assigned", "dropped"):
        mine, theirs = getattr(snapshot, name), getattr(back, name)
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)
    assert list(back.per_layer) == list(snapshot.per_layer) == ["entropy", "aux_loss", "z_loss"]
    for name, mine in snapshot.per_layer.items():
        assert mine.dtype == back.per_layer[name].dtype == np.float64
        np.testing.assert_array_equal(mine, back.per_layer[name])


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
    data = make_snapshot(per_layer={"entropy": np.array([math.nan, 0.5])}).to_json_dict()
    assert data["per_layer"]["entropy"] == [None, 0.5]
    assert all(type(count) is int for row in data["tokens_per_expert"] for count in row)


def test_arrays_are_read_only_copies(make_snapshot: Make) -> None:
    dropped, entropy = np.zeros(2, dtype=np.int64), np.zeros(2)
    snapshot = make_snapshot(
        tokens_per_expert=np.full((2, 4), 25), dropped=dropped, per_layer={"entropy": entropy}
    )
    dropped[0] = entropy[0] = 9
    assert snapshot.dropped.tolist() == snapshot.per_layer["entropy"].tolist() == [0, 0]
    for array in (snapshot.tokens_per_expert, snapshot.assigned, *snapshot.per_layer.values()):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    with pytest.raises(TypeError, match="does not support item assignment"):
        snapshot.per_layer["entropy"] = entropy  # type: ignore[index]


def test_snapshot_survives_pickling(make_snapshot: Make) -> None:
    snapshot = make_snapshot()
    back = pickle.loads(pickle.dumps(snapshot))
    assert back.to_json_dict() == snapshot.to_json_dict()


def test_json_with_a_quantity_that_nobody_knows_keeps_it(make_snapshot: Make) -> None:
    snapshot = make_snapshot(per_layer={"from_elsewhere": np.array([0.25, 4.0])})
    assert through_json(snapshot).per_layer["from_elsewhere"].tolist() == [0.25, 4.0]


def test_tokens_with_different_numbers_of_experts_are_conserved(make_snapshot: Make) -> None:
    """Tokens 0 to 4 ask for 1, 2, 3, 0 and 4 of 4 experts; the first expert keeps two of four."""
    asked = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    kept = asked.copy()
    kept[2:, 0] = 0
    snapshot = make_snapshot(
        layers=(7,),
        tokens=5,
        top_k=2,
        tokens_per_expert=kept.sum(axis=0)[None],
        assigned=asked.sum(keepdims=True)[0],
        dropped=(asked - kept).sum(keepdims=True)[0],
        per_layer=dict.fromkeys(("entropy", "aux_loss", "z_loss"), np.zeros(1)),
    )
    back = through_json(snapshot)
    assert (back.tokens, back.top_k) == (5, 2)
    assert (back.assigned.tolist(), back.dropped.tolist()) == ([10], [2])
    assert back.experts_per_token.tolist() == [2.0]
    assert back.drop_rate.tolist() == [0.2]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"assigned": np.array([101, 100])}, r"layer 2: \d+ .* reached .* but 101 were assigned"),
        ({"tokens": 24, "assigned": np.array([100, 100])}, r"layer 2: 100 .* 24 \* 4 = 96"),
        ({"assigned": np.full(2, 100.0)}, r"assigned must be int64 \[2\], got float64"),
        ({"tokens_per_expert": np.zeros((2, 4))}, "must be int64"),
        ({"tokens_per_expert": np.zeros((3, 4), dtype=np.int64)}, r"\[2, E\], got int64 \[3, 4\]"),
        ({"dropped": np.zeros(3, dtype=np.int64)}, r"dropped must be int64 \[2\]"),
        ({"per_layer": {"entropy": np.zeros(2, dtype=np.float32)}}, "entropy must be float64"),
        ({"per_layer": {"entropy": np.zeros(3)}}, r"entropy must be float64 \[2\], got .*\(3,\)"),
        ({"per_layer": {"../x": np.zeros(2)}}, r"'\.\./x' cannot name a quantity"),
        ({"per_layer": {"tokens": np.zeros(2)}}, "'tokens' cannot name a quantity: it is"),
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
        ({"assigned": [98, 98]}, "inconsistent routing snapshot: layer 2"),
        ({"assigned": [100]}, r"assigned must be int64 \[2\], got int64 \(1,\)"),
        ({"dropped": [-1, 0]}, "must not be negative"),
        ({"tokens": 50.0}, "tokens must be an integer >= 0, got 50.0"),
        ({"tokens": True}, "tokens must be an integer"),
        ({"tokens_per_expert": [[1, 2], [3]]}, "equally long lists of integers"),
        ({"tokens_per_expert": [[1.5] * 4] * 2}, "equally long lists of integers"),
        ({"per_layer": {"entropy": ["high", 1.0]}}, r"per_layer\.entropy must be a number"),
        ({"per_layer": {"entropy": 3}}, r"per_layer\.entropy must be a list of numbers, got 3"),
        ({"per_layer": [1.0, 2.0]}, r"per_layer must be an object, got \[1\.0, 2\.0\]"),
        ({"per_layer": {"Entropy": [1.0, 1.0]}}, "'Entropy' cannot name a quantity"),
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
    assert snapshot.experts_per_token.tolist() == [2.0, 2.0]
