"""Answers about a run against what its steps say, computed step by step."""

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_megatron.config import apply_overrides, load_config
from moe_megatron.errors import DataError
from moe_megatron.run.folder import write_config
from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE
from moe_megatron.telemetry.values.profile import PROFILE_FILE, RoutingProfile
from moe_megatron.testing.written_run import LAYERS, step_record, step_routing, write_run
from moe_megatron.webapp.calls import CALLS, answer
from moe_megatron.webapp.frames import load_bytes
from moe_megatron.webapp.run_reader import RunReader

STEPS = 40


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunReader:
    return RunReader(write_run(tmp_path_factory.mktemp("runs") / "run", STEPS, history=30))


def slow_counts(first: int, last: int) -> np.ndarray:
    return sum(step_routing(step).tokens_per_expert for step in range(first, last + 1))


@pytest.mark.parametrize(("first", "last"), [(1, 40), (7, 7), (28, 33), (40, 40)])
def test_matrix_is_the_frame_of_the_window(run: RunReader, first: int, last: int) -> None:
    frame = answer(run, "matrix", {"first": str(first), "last": str(last)})
    assert struct.unpack("<4sIIHH", frame[:16]) == (b"MOE1", first, last, 3, 8)
    assert frame[16:] == load_bytes(slow_counts(first, last)).tobytes()


def test_a_window_is_cut_to_the_steps_there_are(run: RunReader) -> None:
    frame = answer(run, "matrix", {"first": "30", "last": "9000"})
    assert struct.unpack("<II", frame[4:12]) == (30, 40)


def test_layers_are_measures_of_each_column(run: RunReader) -> None:
    found = answer(run, "layers", {"columns": "6"})
    assert found["layers"] == list(LAYERS)
    assert found["bias_spread"] == []
    for column, (first, last) in enumerate(found["steps"]):
        counts = slow_counts(first, last)
        load = counts / counts.mean(axis=1, keepdims=True)
        z_loss = np.mean([step_routing(s).per_layer["z_loss"] for s in range(first, last + 1)], 0)
        share = counts / counts.sum(axis=1, keepdims=True)
        entropy = -(share * np.log(np.where(share, share, 1))).sum(axis=1) / np.log(8)
        for name, expected in {
            "max_over_mean": load.max(axis=1),
            "dead": (counts == 0).sum(axis=1),
            "z_loss": z_loss,
            "entropy": entropy,
        }.items():
            mine = [row[column] for row in found[name]]
            np.testing.assert_allclose(mine, expected, rtol=1e-5, err_msg=name)


def test_series_are_means_of_each_column(run: RunReader) -> None:
    found = answer(run, "series", {"columns": "5"})
    for (first, last), loss in zip(found["steps"], found["loss"], strict=True):
        losses = [step_record(step).loss for step in range(first, last + 1)]
        assert loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert found["evaluations"] == [{"step": STEPS, "name": "validation", "loss": 3.0}]
    alone = answer(run, "series", {"first": "3", "last": "3"})
    assert alone["grad_norm"] == [None]


def test_an_expert_has_its_load_over_the_fair_share(run: RunReader) -> None:
    found = answer(run, "expert", {"layer": "3", "expert": "5", "columns": "4"})
    for (first, last), load in zip(found["steps"], found["load"], strict=True):
        row = slow_counts(first, last)[1]
        assert load == pytest.approx(row[5] / row.mean(), rel=1e-5)


def test_moves_are_changes_of_rank_and_the_largest_come_first(run: RunReader) -> None:
    found = answer(run, "moves", {"since": "10", "last": "40"})
    before, after = slow_counts(1, 10), slow_counts(1, 40)
    sizes = []
    for move in found["moves"]:
        row, number = LAYERS.index(move["layer"]), move["expert"]
        for counts, key in ((before, "before"), (after, "after")):
            load = counts[row] / counts[row].mean()
            assert move[f"ratio_{key}"] == pytest.approx(load[number])
            assert (
                move[f"rank_{key}"] == 1 + sum(load > load[number])
                or (load == load[number]).sum() > 1
            )
        sizes.append(abs(move["rank_after"] - move["rank_before"]))
    assert sizes == sorted(sizes, reverse=True)
    assert 0 not in sizes


def test_configuration_and_checkpoint_tell_of_ranks_cost_and_tasks(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 12, history=0)
    config = apply_overrides(load_config("demo_moe"), {"parallel.expert_parallel_size": 4})
    write_config(config, folder)
    saved = folder / "checkpoints" / "iter_0000012"
    saved.mkdir(parents=True)
    profile = RoutingProfile.from_snapshots([step_routing(step) for step in range(1, 13)])
    part = profile.tokens_per_expert // 3
    profile.by_task = {"law": part, "code": profile.tokens_per_expert - part}
    profile.save(saved / PROFILE_FILE)
    run = RunReader(folder)
    about = answer(run, "about", {})
    assert about["has"] == {"profile": True, "affinity": False, "tokens": False, "tasks": True}
    assert [(it["step"], it["best"]) for it in about["checkpoints"]] == [(12, True)]
    assert about["expert_ranks"][0] == [0, 0, 1, 1, 2, 2, 3, 3]
    by_rank = slow_counts(1, 12).sum(axis=0).reshape(4, 2).sum(axis=1)
    ranks = answer(run, "ranks", {})["ranks"]
    np.testing.assert_allclose([it["load"] for it in ranks], by_rank / by_rank.mean())
    assert [it["wait_seconds"] for it in ranks] == [None] * 4
    opened = answer(run, "expert", {"layer": "2", "expert": "1"})
    domains = opened["domains"]
    assert opened["domains_note"] == ""
    assert {it["name"] for it in domains} == {"law", "code"}
    assert sum(it["share"] for it in domains) == pytest.approx(1)
    cost = answer(run, "cost", {"columns": "1"})
    each = 3 * config.model.hidden_size * config.expert_hidden_size
    expected = 6 * each * slow_counts(1, 12).sum(axis=1) / 12
    np.testing.assert_allclose(np.ravel(cost["flops_per_layer"]), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({}, "All data of this run is of one source. Give each domain a path of its own"),
        ({"data.paths": ("a", "b", "c")}, "mixes 3 sources that have no names. Where `data.tasks`"),
        (
            {"data.paths": ("a", "b"), "data.tasks": ("code", "law")},
            "Domains are counted, and are shown with the first checkpoint",
        ),
        (
            {
                "data.paths": ("a", "b"),
                "data.tasks": ("code", "law"),
                "training.recompute": "full",
                "parallel.pipeline_parallel_size": 2,
            },
            "not counted where the stages of a pipeline compute activations again",
        ),
    ],
)
def test_expert_without_domains_says_how_to_have_them(
    tmp_path: Path, overrides: dict[str, Any], said: str
) -> None:
    folder = write_run(tmp_path / "run", 3, history=0)
    write_config(apply_overrides(load_config("demo_moe"), overrides), folder)
    found = answer(RunReader(folder), "expert", {"layer": "3", "expert": "5"})
    assert found["domains"] == []
    assert said in found["domains_note"]


def test_ranks_wait_for_the_slowest_of_them_and_memory_is_a_mean(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 3, history=0)
    write_config(
        apply_overrides(load_config("demo_moe"), {"parallel.expert_parallel_size": 2}), folder
    )
    lines = [
        replace(step_record(step), memory_bytes=100 * step, expert_rank_seconds=(step, 4.0))
        for step in (1, 2, 3)
    ]
    (folder / METRICS_FILE).write_text(
        "".join(f"{json.dumps(it.to_json_dict())}\n" for it in lines)
    )
    run = RunReader(folder)
    assert [it["wait_seconds"] for it in answer(run, "ranks", {})["ranks"]] == [2.0, 0.0]
    one = answer(run, "ranks", {"first": "3", "last": "3"})["ranks"]
    assert [it["wait_seconds"] for it in one] == [1.0, 0.0]
    assert answer(run, "series", {"columns": "1"})["memory_bytes"] == [200.0]


@pytest.mark.parametrize("call", [name for name in CALLS if name not in ("expert", "view")])
def test_every_call_answers_for_a_run_that_has_only_begun(tmp_path: Path, call: str) -> None:
    (tmp_path / "events.jsonl").write_text('{"time": 1.0, "kind": "launched", "host": "a"}\n')
    run = RunReader(tmp_path)
    if call in ("matrix", "series"):
        with pytest.raises(DataError, match="no step yet"):
            answer(run, call, {})
    else:
        assert isinstance(answer(run, call, {}), dict)


@pytest.mark.parametrize(
    ("call", "words", "problem"),
    [
        ("matrix", {"first": "9", "last": "3"}, r"first \(9\) must not be after last \(3\)"),
        ("matrix", {"first": "-1"}, "whole number from 1 on, not '-1'"),
        ("matrix", {"first": "1e9"}, "whole number from 1 on"),
        ("matrix", {"first": "9" * 4000}, "whole number from 1 on"),
        ("matrix", {"first": "77", "last": "80"}, "steps 77 to 80 are not on record.*1 to 40"),
        ("matrix", {"quantity": "bias"}, "quantity must be load"),
        ("layers", {"columns": "0"}, "columns must be a whole number from 1 on"),
        ("expert", {}, "layer must be a whole number from 1 on, not nothing"),
        ("expert", {"layer": "4", "expert": "0"}, "no expert 0 in layer 4; .*layers 2, 3, 5"),
        ("expert", {"layer": "2", "expert": "8"}, "no expert 8 in layer 2; .*experts 0 to 7"),
        ("events", {"after": "x"}, "after must be a whole number"),
        ("view", {"name": "mine"}, "there is no such view"),
    ],
)
def test_questions_that_cannot_be_answered_say_why(run, call, words, problem) -> None:
    with pytest.raises(DataError, match=problem):
        answer(run, call, words)
