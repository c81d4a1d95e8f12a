"""Whatever a run writes may fail, and the run ends with the bits of an undisturbed one.

One process makes three runs: one in peace, one whose disk is full for some steps, one whose folder
is removed under it. Another is started by the command, with a reader that goes away.
"""

import json
import logging
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moe_megatron.run.owner import OWNER
from moe_megatron.telemetry.journal import read_events
from moe_megatron.testing.distributed import NO_LAUNCHER, run_distributed
from moe_megatron.testing.small_disk import empty, fill, small_disk

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

STEPS, HARM, REPAIR = 14, 4, 10
SINKS = {"megatron_log", "json_log", "tensorboard"}
"""Those that write more than is left of a page; on a full disk, that much is still free."""


def train(run_dir: Path, harm: Callable[[], None], repair: Callable[[], None]) -> dict[str, Any]:
    """The outcome of a run that is harmed after one step and repaired after another."""
    from moe_megatron.cli.logs import configure_logging
    from moe_megatron.config import apply_overrides, load_config
    from moe_megatron.config.flags import split_flags
    from moe_megatron.mcore.loop.callbacks import Callback, StepEnd
    from moe_megatron.run.ending import conclude
    from moe_megatron.run.start import start
    from moe_megatron.telemetry.exporter import discovery
    from moe_megatron.telemetry.sinks import backoff

    backoff.FIRST_SECONDS = discovery.LOOK_SECONDS = 0.0
    flags = ["--mock-data", "--tensorboard-dir", str(run_dir / "tensorboard")]
    flags += ["--tensorboard-log-interval", "1", "--log-interval", "1"]
    settings = {
        "run_dir": str(run_dir),
        "training.train_steps": STEPS,
        "checkpoint.save_interval": None,
        "telemetry.metrics_port": 0,
        "telemetry.log_format": "json",
        "telemetry.console_interval": 1,
        "telemetry.plain_console": True,
    }
    config = apply_overrides(load_config("test_tiny"), {**settings, **split_flags(flags)})
    result: dict[str, Any] = {"grad_norms": []}

    class Harm(Callback):
        def on_step_end(self, event: StepEnd) -> None:
            result["grad_norms"].append(float(event.grad_norm or 0))
            if event.step == HARM:
                target = json.loads((run_dir / "prometheus_targets.json").read_text())
                (result["address"],) = target[0]["targets"]
                harm()
            if event.step == REPAIR:
                with urllib.request.urlopen(f"http://{result['address']}/metrics") as answer:
                    result["metrics"] = answer.read().decode()
                repair()

        def on_train_end(self, model: list[Any]) -> None:
            named = [item for chunk in model for item in chunk.named_parameters()]
            result["weights"] = {name: value.detach().clone().numpy() for name, value in named}

    attached = configure_logging(config, 0)
    attached = replace(attached, callbacks=(*attached.callbacks, Harm()))
    done = start(config, attached=attached)
    logging.shutdown()
    result |= {"losses": done.history.losses, "summary": conclude(done), "run_dir": run_dir}
    return result


def remove(folder: Path) -> None:
    """Remove all logs of a run; without its folder, the run itself would end."""
    aside = folder.with_name("aside")
    aside.mkdir()
    for path in folder.iterdir():
        if path.name != OWNER:
            path.rename(aside / path.name)
    shutil.rmtree(aside, ignore_errors=True)


def train_three_times(place: Path, disk: Path) -> list[dict[str, Any]]:
    removed = place / "removed"
    return [
        train(place / "peace", lambda: None, lambda: None),
        train(disk / "full", lambda: fill(disk), lambda: empty(disk)),
        train(removed, lambda: remove(removed), lambda: None),
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Any:
    place = tmp_path_factory.mktemp("runs")
    environment = {**NO_LAUNCHER, "MOE_MEGATRON_CACHE": str(cache)}
    with small_disk(place / "disk", "4m") as disk:
        given = {"world_size": 1, "environment": environment}
        yield run_distributed(train_three_times, place, disk, **given)[0]


def failed_sinks(run: dict[str, Any]) -> set[str]:
    lines = run["metrics"].splitlines()
    prefix = 'moe_sink_failed{sink="'
    return {
        line.removeprefix(prefix).partition('"')[0]
        for line in lines
        if line.startswith(prefix) and line.endswith(" 1.0")
    }


@pytest.mark.parametrize("number", [1, 2], ids=["full", "removed"])
def test_run_ends_with_the_bits_of_an_undisturbed_one(runs: Any, number: int) -> None:
    peace, harmed = runs[0], runs[number]
    assert harmed["losses"] == peace["losses"]
    assert len(harmed["losses"]) == STEPS
    assert harmed["grad_norms"] == peace["grad_norms"]
    assert harmed["weights"].keys() == peace["weights"].keys()
    for name, value in peace["weights"].items():
        assert (harmed["weights"][name] == value).all(), name


def test_full_disk_shows_at_every_sink_while_it_lasts_and_ends_for_each(runs: Any) -> None:
    peace, full, _ = runs
    assert failed_sinks(peace) == set()
    assert failed_sinks(full) >= SINKS
    events = list(read_events(full["run_dir"]))
    failed = [event.fields["sink"] for event in events if event.kind == "sink_failed"]
    restored = {event.fields["sink"] for event in events if event.kind == "sink_restored"}
    assert set(failed) == restored == failed_sinks(full)
    assert all("No space left" in e.fields["reason"] for e in events if e.kind == "sink_failed")


def test_files_of_the_run_with_a_full_disk_are_complete_and_valid(runs: Any) -> None:
    folder = runs[1]["run_dir"]
    for name in ("metrics.jsonl", "routing.jsonl"):
        lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
        steps = [line["step"] for line in lines if line.get("kind") != "eval"]
        assert steps == list(range(1, STEPS + 1)), name
    log = (folder / "logs" / "rank0.log").read_text()
    assert [log.count(f" iteration {step:8d}/") for step in range(1, STEPS + 1)] == [1] * STEPS
    for line in (folder / "logs" / "rank0.jsonl").read_text().splitlines():
        json.loads(line)
    assert len(list((folder / "tensorboard").iterdir())) > 1  # the torn file, and one after it


def test_removed_logs_are_said_and_begun_anew(runs: Any) -> None:
    removed = runs[2]
    reasons = {
        event.fields["sink"]: event.fields["reason"]
        for event in read_events(removed["run_dir"])
        if event.kind == "sink_failed"
    }
    for name in ("metrics.jsonl", "routing.jsonl", "megatron_log", "json_log"):
        assert reasons[name] == "it was removed, and a new one begins"
    lines = (removed["run_dir"] / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == STEPS
    assert removed["metrics"].count("moe_sink_outages_total{") > 0


@pytest.mark.deep
def test_reader_of_the_output_that_goes_away_ends_no_run(tmp_path: Path, cache: Path) -> None:
    words = [sys.executable, "-m", "moe_megatron", "train", "--config", "test_tiny"]
    words += ["--mock-data", "--train-iters", "12", "--lr-warmup-iters", "0"]
    words += ["--num-processes", "1", "--run-dir", str(tmp_path / "run")]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "MOE_MEGATRON_CACHE": str(cache)}
    program = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
    assert program.stdout is not None
    assert program.stdout.readline()
    program.stdout.close()
    assert program.wait(240) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert max(json.loads(line)["step"] for line in lines) == 12
