"""A dashboard that Python starts beside itself: of a run, and of a model in memory."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from moe_megatron.errors import ConfigError, DataError
from moe_megatron.mcore import world
from moe_megatron.models import MoEModel
from moe_megatron.run.history import History
from moe_megatron.telemetry.values.records import StepRecord
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot
from moe_megatron.testing.written_run import write_run
from moe_megatron.training.trainer import MoETrainer
from moe_megatron.viz import MoEDashboard

pytestmark = pytest.mark.deep


def fetch(url: str) -> Any:
    with urllib.request.urlopen(url.partition("#")[0], timeout=60) as answer:
        return json.loads(answer.read())


@pytest.fixture
def model() -> MoEModel:
    torch.manual_seed(0)
    return MoEModel(32, 4, 2, 2, vocab_size=64)


def test_a_run_is_shown_and_the_first_metric_opens(tmp_path: Path) -> None:
    dashboard = MoEDashboard(write_run(tmp_path / "run", 5))
    with dashboard.start(0, metrics=["compute_cost_timeline", "routing_heatmap"]) as process:
        assert process.url.endswith("#view=cost")
        [run] = fetch(process.url.partition("#")[0] + "api/runs")
        assert (run["name"], run["last_step"]) == ("run", 5)
        assert process.url in process._repr_html_()
    assert not process.runs
    dashboard.close()


def test_tracked_blocks_of_a_model_are_its_steps(model: MoEModel) -> None:
    dashboard = MoEDashboard(model)
    address = dashboard.start(0).url
    ids = torch.randint(0, 64, (2, 16))
    for _ in range(3):
        with dashboard.track():
            model(ids)
    [run] = fetch(f"{address}api/runs")
    assert (run["layers"], run["experts"], run["last_step"]) == ([1, 2], 4, 3)
    layers = fetch(f"{address}api/runs/{run['id']}/layers?columns=3")
    counts = dashboard._monitor.profile().tokens_per_expert / 3  # the same text each time
    expected = counts.max(axis=1) / counts.mean(axis=1)
    for row, load in zip(layers["max_over_mean"], expected.tolist(), strict=True):
        assert row == pytest.approx([load] * 3, rel=1e-5)
    dashboard.close()


def test_tracked_blocks_of_a_model_become_a_report(model: MoEModel, tmp_path: Path) -> None:
    dashboard = MoEDashboard(model)
    with pytest.raises(DataError, match=r"no block .* tracked yet; run .* dashboard.track"):
        dashboard.export_report(tmp_path / "x.html")
    for _ in range(3):
        with dashboard.track():
            model(torch.randint(0, 64, (2, 16)))
    report = dashboard.export_report(tmp_path / "moe_analysis.html").read_text()
    assert "2 MoE layers of 4 experts, top-2" in report
    assert "<td>steps</td><td>3</td>" in report


@pytest.mark.distributed
def test_training_shows_itself_while_it_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MoEModel(32, 4, 2, 2, vocab_size=512)
    trainer = MoETrainer(model, tokenizer="demo", run_dir=tmp_path / "run")
    seen: list[Any] = []
    was_seen = threading.Event()
    keep = History.step

    def kept(self: History, record: StepRecord, routing: RoutingSnapshot | None) -> None:
        if record.step == 30:  # a training that is short must not end before anybody looks
            was_seen.wait(60)
        keep(self, record, routing)

    monkeypatch.setattr(History, "step", kept)

    def look() -> None:
        while not seen:
            time.sleep(0.1)
            if (process := trainer.dashboard) is not None:
                found = fetch(f"{process.url}api/runs")
                seen.extend(it for it in found if it["last_step"] > 1)
        was_seen.set()

    threading.Thread(target=look, daemon=True).start()
    try:
        result = trainer.train(
            ["one two three"] * 200, max_steps=60, num_epochs=99, batch_size=2, dashboard=True
        )
    finally:
        world.leave()
    process = trainer.dashboard
    assert process is not None
    assert f"dashboard  {process.url}" in capsys.readouterr().out
    [run] = fetch(f"{process.url}api/runs")
    assert (run["name"], run["last_step"]) == (result.run_dir.name, 60)
    assert seen
    assert seen[0]["state"] == "running"
    process.close()


def test_it_ends_with_the_program_that_started_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 2, history=0)
    code = (
        "import time\nfrom moe_megatron.viz import MoEDashboard\n"
        f"print(MoEDashboard({str(run)!r}).start(0)._process.pid, flush=True)\ntime.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as it:
        assert it.stdout is not None
        server = psutil.Process(int(it.stdout.readline()))
        os.kill(it.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while server.is_running() and server.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_mistakes_are_told(tmp_path: Path, model: MoEModel) -> None:
    run = write_run(tmp_path / "run", 2, history=0)
    with MoEDashboard(run).start(0) as first:
        port = int(first.url.rstrip("/").rpartition(":")[2])
        with pytest.raises(ConfigError, match=f"port {port}.*give a free port"):
            MoEDashboard(run).start(port)
    with pytest.raises(ConfigError, match=r"there is no metric 'heat'.*Metrics are: expert_load"):
        MoEDashboard(run).start(0, metrics=["heat"])
    with pytest.raises(ConfigError, match="the folder of a run or a model, not int"):
        MoEDashboard(3)
    with pytest.raises(DataError, match="a run counts its steps itself"):
        MoEDashboard(run).track()
    assert MoEDashboard(run).export_report(tmp_path / "x.html").is_file()
    other = write_run(tmp_path / "other", 5)
    path = MoEDashboard([str(run), other]).export_report(tmp_path / "both.html")
    assert f"<title>{run.name}, {other.name} - MoE Lab</title>" in path.read_text()
    with pytest.raises(ConfigError, match="not int; give"):
        MoEDashboard([run, 3])
