import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_megatron.errors import DataError
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot

Make = Callable[..., RoutingSnapshot]


def as_json(profile: RoutingProfile, folder: Path) -> Any:
    profile.save(folder / "as_json")
    return json.loads((folder / "as_json").read_text())


def test_from_snapshots_sums_counts_and_weights_means_by_tokens(make_snapshot: Make) -> None:
    a = make_snapshot(5, per_layer={"entropy": np.array([1.0, 2.0])})
    b = make_snapshot(
        6,
        tokens=150,
        tokens_per_expert=np.full((2, 4), 75),
        dropped=np.zeros(2, dtype=np.int64),
        per_layer={"entropy": np.array([3.0, math.nan])},
    )
    profile = RoutingProfile.from_snapshots([a, b])
    assert (profile.steps, profile.tokens) == (2, 200)
    assert (profile.first_step, profile.last_step) == (5, 6)
    np.testing.assert_array_equal(
        profile.tokens_per_expert, a.tokens_per_expert + b.tokens_per_expert
    )
    assert profile.per_layer["entropy"].tolist() == [(50 * 1.0 + 150 * 3.0) / 200, 2.0]
    assert profile.dropped.tolist() == a.dropped.tolist()
    assert profile.assigned.tolist() == [400, 400]
    assert profile.experts_per_token.tolist() == [2.0, 2.0]


def test_empty_profile_has_no_means() -> None:
    profile = RoutingProfile.empty(layers=(1, 2), num_experts=4, top_k=2)
    assert dict(profile.per_layer) == {}
    assert np.isnan(profile.experts_per_token).all()
    assert profile.first_step is None


def test_quantity_of_some_steps_is_the_mean_over_those(make_snapshot: Make, tmp_path: Path) -> None:
    steps = [make_snapshot(1), make_snapshot(2, per_layer={"margin": np.array([0.5, 1.5])})]
    profile = RoutingProfile.from_snapshots([*steps, make_snapshot(3)])
    assert profile.per_layer["margin"].tolist() == [0.5, 1.5]
    assert profile.means["margin"].tokens.tolist() == [50, 50]
    assert profile.means["entropy"].tokens.tolist() == [150, 150]
    profile.save(tmp_path / "p")
    back = RoutingProfile.load(tmp_path / "p")
    assert back.per_layer["margin"].tolist() == [0.5, 1.5]
    other = RoutingProfile.from_snapshots([make_snapshot(4)])
    other.merge(back)
    assert other.per_layer["margin"].tolist() == [0.5, 1.5]
    other.add(make_snapshot(5, per_layer={"margin": np.array([1.0, 1.0])}))
    assert back.per_layer["margin"].tolist() == [0.5, 1.5]


def test_different_numbers_of_experts_a_token_add_up(make_snapshot: Make, tmp_path: Path) -> None:
    few = make_snapshot(1, assigned=np.array([4, 0]), tokens_per_expert=np.array([[1, 1, 1, 0],
        [0, 0, 0, 0]]), dropped=np.array([1, 0]))  # fmt: skip
    profile = RoutingProfile.from_snapshots([few, make_snapshot(2)])
    profile.save(tmp_path / "p")
    back = RoutingProfile.load(tmp_path / "p")
    assert back.assigned.tolist() == [104, 100]
    assert back.experts_per_token.tolist() == [1.04, 1.0]


def test_save_load_continues_as_if_never_stopped(make_snapshot: Make, tmp_path: Path) -> None:
    snapshots = [make_snapshot(step) for step in range(1, 9)]
    whole = RoutingProfile.from_snapshots(snapshots)
    first = RoutingProfile.from_snapshots(snapshots[:5])
    first.save(tmp_path / "routing_profile.json")
    resumed = RoutingProfile.load(tmp_path / "routing_profile.json")
    for snapshot in snapshots[5:]:
        resumed.add(snapshot)
    assert as_json(resumed, tmp_path) == as_json(whole, tmp_path)


def test_merge_equals_one_sum_and_keeps_the_other(make_snapshot: Make, tmp_path: Path) -> None:
    whole = RoutingProfile.from_snapshots(make_snapshot(step) for step in (1, 2, 3))
    left = RoutingProfile.from_snapshots([make_snapshot(1)])
    right = RoutingProfile.from_snapshots([make_snapshot(2), make_snapshot(3)])
    before = as_json(right, tmp_path)
    left.merge(right)
    np.testing.assert_array_equal(left.tokens_per_expert, whole.tokens_per_expert)
    for name, values in whole.per_layer.items():
        np.testing.assert_allclose(left.per_layer[name], values, rtol=1e-14)
    assert (left.steps, left.first_step, left.last_step) == (3, 1, 3)
    assert as_json(right, tmp_path) == before


def test_empty_profile_survives_save_and_merge(make_snapshot: Make, tmp_path: Path) -> None:
    empty = RoutingProfile.empty(layers=(2, 3), num_experts=4, top_k=2)
    empty.save(tmp_path / "p")
    empty = RoutingProfile.load(tmp_path / "p")
    full = RoutingProfile.from_snapshots([make_snapshot(4)])
    full.merge(empty)
    assert (full.first_step, full.steps) == (4, 1)


def test_add_other_model_is_data_error(make_snapshot: Make) -> None:
    profile = RoutingProfile.from_snapshots([make_snapshot()])
    with pytest.raises(DataError, match=r"different models: .* 4 experts .* got .* 8 experts"):
        profile.add(make_snapshot(num_experts=8))
    with pytest.raises(DataError, match="needs at least one routing snapshot"):
        RoutingProfile.from_snapshots([])


def test_failed_save_keeps_the_old_file(make_snapshot: Make, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    RoutingProfile.from_snapshots([make_snapshot()]).save(path)
    old = path.read_bytes()
    broken = RoutingProfile.from_snapshots([make_snapshot()])
    broken.top_k = object()  # type: ignore[assignment]
    with pytest.raises(TypeError):
        broken.save(path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 1}, r"p\.json: .*schema_version is 1, this version reads 2"),
        ({"tokens": 1}, r"p\.json: inconsistent routing profile: layer 2: 100 .* 1 \* 4 = 4"),
        ({"assigned": [99, 100]}, r"p\.json: inconsistent routing profile: layer 2"),
        ({"first_step": None}, "first_step must be an integer"),
        ({"last_step": 0}, "last_step must be an integer >= 1"),
        ({"steps": 0}, "must be null when steps is 0"),
        ({"layers": [2, 3, 4]}, "must hold 3 values"),
        ({"dropped": [0]}, "has 2 rows, assigned 2 and dropped 1 values for 2 layers"),
        ({"per_layer": {"entropy": {"weighted_sum": [1.0]}}}, r"missing field\(s\): tokens"),
        ({"per_layer": []}, r"per_layer must be an object, got \[\]"),
        (
            {"per_layer": {"tokens": {"weighted_sum": [1.0, 1.0], "tokens": [1, 1]}}},
            "'tokens' cannot name a quantity",
        ),
        ({"extra": 1}, r"unknown field\(s\): extra"),
    ],
)
def test_load_wrong_content_names_file_and_field(
    make_snapshot: Make, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "p.json"
    data = as_json(RoutingProfile.from_snapshots([make_snapshot()]), tmp_path)
    path.write_text(json.dumps(data | change))
    with pytest.raises(DataError, match=message):
        RoutingProfile.load(path)


def test_load_missing_or_torn_file_is_data_error(make_snapshot: Make, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    with pytest.raises(DataError, match=r"p\.json: no such file; a routing profile is saved"):
        RoutingProfile.load(path)
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory\); give the file of"):
        RoutingProfile.load(tmp_path)
    for foreign in ("{}", "[]", '{"layers": [1]}'):
        path.write_text(foreign)
        with pytest.raises(DataError, match=r"p\.json: is no routing profile"):
            RoutingProfile.load(path)
    RoutingProfile.from_snapshots([make_snapshot()]).save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"p\.json: not valid JSON .* copy it again"):
        RoutingProfile.load(path)
