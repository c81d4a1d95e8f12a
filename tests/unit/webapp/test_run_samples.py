"""What the dashboard makes of samples, against sums made one by one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_megatron.telemetry.sinks.sample_files import sample_paths
from moe_megatron.testing.written_run import LAYERS, NUM_EXPERTS, TOKENS, step_sample, write_run
from moe_megatron.webapp import flow_call
from moe_megatron.webapp.calls import answer
from moe_megatron.webapp.run_reader import RunReader

STEPS = 40


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunReader:
    return RunReader(write_run(tmp_path_factory.mktemp("runs") / "run", STEPS, samples=8))


def asked(run: RunReader, call: str, **words: int) -> Any:
    return answer(run, call, {name: str(value) for name, value in words.items()})


def test_bias_is_the_last_sampled_at_the_end_of_each_column(run: RunReader) -> None:
    found = asked(run, "expert", layer=3, expert=5, columns=10)
    spread = asked(run, "layers", columns=10)["bias_spread"]
    for column, (_, last) in enumerate(found["steps"]):
        sampled = last // 8 * 8
        if not sampled:
            assert found["bias"][column] is None
            assert spread[0][column] is None
            continue
        bias = step_sample(sampled).head.expert_bias
        assert found["bias"][column] == pytest.approx(float(bias[1, 5]), rel=1e-5)
        mine = [row[column] for row in spread]
        assert mine == pytest.approx((bias.max(axis=1) - bias.min(axis=1)).tolist(), rel=1e-5)
    assert found["bias"][0] is None
    assert found["bias"][-1] is not None


@pytest.mark.parametrize(
    ("first", "last", "summed"), [(1, 40, (16, 24, 32, 40)), (8, 17, (8, 16)), (33, 35, (32,))]
)
def test_flow_is_that_of_the_newest_samples_of_the_window(
    run: RunReader, first: int, last: int, summed: tuple[int, ...]
) -> None:
    found = asked(run, "flow", first=first, last=last)
    total = sum(step_sample(step).flow for step in summed)
    for row, layer in enumerate(LAYERS[:-1]):
        shares = np.zeros((NUM_EXPERTS, NUM_EXPERTS))
        for link in found["links"]:
            if link["from_layer"] == layer:
                shares[link["from_expert"], link["to_expert"]] = link["share"]
        np.testing.assert_allclose(shares, total[row] / total[row].sum())
    assert found["source"] == "recorded"
    assert f"{len(summed) * TOKENS:,} tokens" in found["note"]
    assert str(summed[0]) in found["note"]


def test_partners_are_shares_of_the_tokens_of_an_expert(run: RunReader) -> None:
    found = asked(run, "expert", layer=3, expert=5)["partners"]
    table = sum(step_sample(step).together for step in (16, 24, 32, 40))[1]
    expected = {
        other: table[5, other] / table[5, 5]
        for other in range(NUM_EXPERTS)
        if other != 5 and table[5, other]
    }
    assert {it["expert"]: it["share"] for it in found} == pytest.approx(expected)
    assert [it["share"] for it in found] == sorted(expected.values(), reverse=True)


def test_chance_of_a_partner_has_the_loads_of_what_was_counted(run: RunReader) -> None:
    found = [
        asked(run, "expert", layer=3, expert=number)["partners"] for number in range(NUM_EXPERTS)
    ]
    table = sum(step_sample(step).together for step in (16, 24, 32, 40))[1]
    chance = np.zeros((NUM_EXPERTS, NUM_EXPERTS))
    for one, partners in enumerate(found):
        for it in partners:
            chance[one, it["expert"]] = it["null_share"] * table[one, one]
    # As many meetings of each expert as were counted, and the odds of two do not depend on others.
    meetings = table.sum(axis=1) - table.diagonal()
    np.testing.assert_allclose(chance.sum(axis=1), meetings, rtol=1e-6)
    np.testing.assert_allclose(chance, chance.T, rtol=1e-6)
    odds = chance[0, 2:] / chance[1, 2:]
    np.testing.assert_allclose(odds, odds[0], rtol=1e-6)


def test_smallest_paths_are_left_out_and_that_is_said(
    run: RunReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = asked(run, "flow")
    monkeypatch.setattr(flow_call, "_MOST_LINKS", 20)
    found = asked(run, "flow")
    assert len(found["links"]) == 20
    for layer in LAYERS[:2]:
        every = sorted(it["share"] for it in whole["links"] if it["from_layer"] == layer)
        kept = [it["share"] for it in found["links"] if it["from_layer"] == layer]
        assert kept == every[::-1][:10]
    assert "of paths are left out" in found["note"]
    assert "left out" not in whole["note"]


def test_run_without_samples_says_how_to_have_some(tmp_path: Path) -> None:
    run = RunReader(write_run(tmp_path / "run", 5))
    found = asked(run, "flow")
    assert found["links"] == []
    assert "telemetry.sample_interval" in found["note"]
    expert = asked(run, "expert", layer=3, expert=5)
    assert expert["bias"] == []
    assert expert["partners"] == []
    assert not asked(run, "about")["has"]["affinity"]


def test_samples_of_another_model_are_passed_over(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 10)
    other = write_run(tmp_path / "other", 10, layers=(1, 2), num_experts=4, samples=5)
    (other / "samples").rename(folder / "samples")
    run = RunReader(folder)
    assert asked(run, "flow")["links"] == []
    assert asked(run, "expert", layer=3, expert=5)["partners"] == []
    assert asked(run, "layers")["bias_spread"] == []


def test_sample_that_is_made_again_replaces_the_one_before(tmp_path: Path) -> None:
    run = RunReader(write_run(tmp_path / "run", 10, samples=10))
    before = asked(run, "expert", layer=3, expert=5)["bias"][-1]
    path = sample_paths(run.run_dir)[10]
    path.write_bytes(b"".join(step_sample(11).lines()))
    assert asked(run, "expert", layer=3, expert=5)["bias"][-1] != before
