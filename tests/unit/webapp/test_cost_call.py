"""What a run costs, against sums over its steps one by one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_megatron.config import apply_overrides, load_config
from moe_megatron.errors import ConfigError
from moe_megatron.run.folder import write_config
from moe_megatron.telemetry.journal import note
from moe_megatron.testing.written_run import step_record, step_routing, write_run
from moe_megatron.webapp.calls import answer
from moe_megatron.webapp.price import Price
from moe_megatron.webapp.run_reader import RunReader

STEPS = 40
PRICE = Price(per_hour=3.0, currency="EUR")


def attempt(run_dir: Path, processes: int, resumed: int | None = None) -> None:
    note(run_dir, "attempt", attempt=1, world_size=processes, host="h", pid=1, started=1.0)
    if resumed is not None:
        note(run_dir, "resumed", step=resumed, seconds=1.0)


def cost(run_dir: Path, price: Price | None = PRICE, **words: int) -> Any:
    run = RunReader(run_dir, price=price)
    return answer(run, "cost", {name: str(value) for name, value in words.items()})


def test_money_is_the_time_of_steps_on_all_processes_of_their_attempt(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", STEPS)
    attempt(run_dir, 2)
    attempt(run_dir, 8, resumed=30)
    attempt(run_dir, 4, resumed=20)  # goes back before where the one before it began
    found = cost(run_dir, columns=10)
    assert found["currency"] == "EUR"
    for (_, last), money in zip(found["steps"], found["money"], strict=True):
        hours = sum(
            step_record(step).step_seconds / 3600 * (2 if step <= 20 else 4)
            for step in range(1, last + 1)
        )
        assert money == pytest.approx(3.0 * hours, rel=1e-5)
    assert "4 processes, each a device for 3 EUR an hour" in found["note"]


def test_money_is_shown_where_somebody_says_a_price(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", 5)
    attempt(run_dir, 2)
    assert cost(run_dir)["money"]
    without = cost(run_dir, price=None)
    assert (without["money"], without["currency"]) == ([], None)
    assert "Money" not in without["note"]


def test_run_without_a_journal_says_why_it_has_no_money(tmp_path: Path) -> None:
    found = cost(write_run(tmp_path / "run", 5))
    assert (found["money"], found["currency"]) == ([], None)
    assert "Money needs the journal of the run" in found["note"]


def test_layers_and_experts_make_together_what_the_run_costs(tmp_path: Path) -> None:
    run_dir = configured(tmp_path)
    attempt(run_dir, 2)
    found = cost(run_dir, columns=5)
    np.testing.assert_allclose(np.sum(found["bytes_per_layer"], axis=0), found["bytes"], rtol=1e-5)
    spent = np.diff([0.0, *found["money"]])
    np.testing.assert_allclose(np.sum(found["money_per_layer"], axis=0), spent, rtol=1e-4)
    for column, (first, last) in enumerate(found["steps"]):
        counts = sum(step_routing(it).tokens_per_expert for it in range(first, last + 1))
        parts = counts.sum(axis=1) / counts.sum()
        for name, whole in (("bytes_per_layer", found["bytes"][column]),
                            ("money_per_layer", spent[column])):  # fmt: skip
            mine = [row[column] for row in found[name]]
            np.testing.assert_allclose(mine, parts * whole, rtol=1e-4)
    assert "Money of a layer or an expert is its part of the operations" in found["note"]


@pytest.mark.parametrize(("first", "last"), [(1, STEPS), (11, 13), (STEPS, STEPS)])
def test_an_expert_costs_by_its_assignments(tmp_path: Path, first: int, last: int) -> None:
    run_dir = configured(tmp_path)
    attempt(run_dir, 2)
    found = answer(
        RunReader(run_dir, price=PRICE), "expert_cost", {"first": str(first), "last": str(last)}
    )
    counts = sum(step_routing(it).tokens_per_expert for it in range(first, last + 1))
    assert found["assignments"] == counts.tolist()
    assert found["steps"] == (first, last)
    hours = 2 * 0.5 * (last - first + 1) / 3600
    assert counts.sum() * found["money_each"] == pytest.approx(3.0 * hours)
    config = load_config("demo_moe")
    parameters = 3 * config.model.hidden_size * config.expert_hidden_size
    assert found["flops_each"] == 6 * parameters
    assert found["bytes_each"] == 4 * config.model.hidden_size * 2 * 3 / 4


def test_cost_of_an_expert_that_is_not_known_is_none(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", 5)
    found = answer(RunReader(run_dir), "expert_cost", {})
    each = [found[f"{name}_each"] for name in ("flops", "bytes", "money")]
    assert each == [None] * 3
    assert np.sum(found["assignments"]) > 0
    attempt(run_dir, 2)  # a price, but no config.yaml that says how large experts are
    priced = cost(run_dir)
    assert priced["money"][-1] > 0
    assert priced["money_per_layer"] == []
    without = write_run(tmp_path / "other", 5, history=0, log=False)
    assert answer(RunReader(without), "expert_cost", {})["assignments"] == []


def test_run_without_experts_has_money_alone(tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", 8, history=0, log=False)
    attempt(run_dir, 1)
    found = cost(run_dir)
    assert found["flops_per_layer"] == [] == found["bytes"]
    assert found["money"][-1] == pytest.approx(3.0 * 8 * 0.5 / 3600, rel=1e-5)


SENT = {"parallel.expert_parallel_size": 4, "training.precision": "bf16"}


def configured(folder: Path, **overrides: Any) -> Path:
    run_dir = write_run(folder / "run", STEPS)
    named = {name.replace("__", "."): value for name, value in overrides.items()}
    write_config(apply_overrides(load_config("demo_moe"), {**SENT, **named}), run_dir)
    return run_dir


def test_bytes_are_vectors_there_and_back_and_their_gradients(tmp_path: Path) -> None:
    run_dir = configured(tmp_path)
    hidden = load_config("demo_moe").model.hidden_size
    found = cost(run_dir, columns=5)
    for (first, last), sent in zip(found["steps"], found["bytes"], strict=True):
        total = 0.0
        for step in range(first, last + 1):
            for assignments in step_routing(step).tokens_per_expert.sum(axis=1):
                for _crossing in ("there", "back", "gradient there", "gradient back"):
                    total += int(assignments) * hidden * 2 * 3 / 4  # three of four are elsewhere
        assert sent == pytest.approx(total / (last - first + 1), rel=1e-5)
    assert "from all 4 EP ranks" in found["note"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"parallel__expert_parallel_size": 1}, ""),
        ({"moe__token_dispatcher": "allgather"}, ""),
        ({"training__precision": "auto"}, "Bytes are not known where training.precision is auto"),
    ],
)
def test_bytes_that_are_not_known_are_not_shown(
    tmp_path: Path, overrides: dict[str, Any], said: str
) -> None:
    found = cost(configured(tmp_path, **overrides))
    assert found["bytes"] == []
    assert said in found["note"]
    assert ("Bytes" in found["note"]) == bool(said)
    assert np.ravel(found["flops_per_layer"]).size


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ({"per_hour": 0.0}, "must be above 0, not 0"),
        ({"per_hour": -1.0}, "must be above 0"),
        ({"per_hour": float("nan")}, "must be above 0, not nan"),
        ({"per_hour": 1.0, "currency": ""}, "'' is no currency"),
        ({"per_hour": 1.0, "currency": "<b>"}, "'<b>' is no currency; give at most 8 letters"),
        ({"per_hour": 1.0, "currency": "E" * 99}, "is no currency"),
    ],
)
def test_prices_that_are_none_are_refused(words: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        Price(**words)
