"""Draws the Grafana dashboards with the data of two runs, into one picture each.

    python tools/draw_dashboards/draw.py

One run is real and small: 4 processes train for some minutes and are scraped by a real Prometheus.
The other is made up in the size of the largest (`large_run`). Needs Node, Chromium and Prometheus.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path

import large_run
from pictures import take_pictures
from recording import Recorded, board

from moe_megatron.dashboards.artifacts import dashboard_json
from moe_megatron.dashboards.local_prometheus import LocalPrometheus, MonitorOptions
from moe_megatron.telemetry.exporter.discovery import TARGETS_FILE
from moe_megatron.testing.programs import start_program
from moe_megatron.testing.prometheus_api import PrometheusApi
from moe_megatron.text.training import train_tokenizer

HERE = Path(__file__).parent
REAL = "real: 4 layers of 4 experts, 4 processes on a CPU"
MADE_UP = "made up: 61 layers of 256 experts, 256 processes; nothing trained"
SMALL_SCRAPE, LARGE_SCRAPE = 1.0, 5.0
LARGE = ("routing", "experts", "cluster")
"""Dashboards that look different for a large run."""

TRAINING = (
    *("--config", "test_tiny", "--num-processes", "4", "--train-iters", "100000"),
    *("--set", "model.num_layers=4", "--set", "parallel.expert_parallel_size=2"),
    *("--set", "data.tasks=[text]", "--set", "moe.capacity_factor=1.0"),
    *("--save-interval", "60", "--set", "training.eval_interval=40"),
    *("--metrics-port", "0", "--metrics-expert-detail", "full"),
    *("--set", "telemetry.peak_tflops=1"),
)


def main() -> None:
    """Build the page, record both runs, and draw them."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--output", type=Path, default=Path("docs/images/grafana"))
    words.add_argument("--minutes", type=float, default=8.0, help="how long the runs last")
    given = words.parse_args()
    npm = ("npm", "--silent", "--no-fund", "--no-audit")
    subprocess.run((*npm, "ci", "--prefer-offline"), cwd=HERE, check=True)
    subprocess.run((*npm, "run", "build"), cwd=HERE, check=True)
    with tempfile.TemporaryDirectory() as folder:
        boards = {
            **_real(Path(folder), given.minutes * 60),
            **_made_up(Path(folder), given.minutes * 60),
        }
    take_pictures(HERE / "built", boards, given.output)


def _real(folder: Path, seconds: float) -> dict[str, dict]:
    """All dashboards of a run that trains."""
    texts = [f"Document {i}: the quick brown fox jumps over {i * i} lazy dogs." for i in range(120)]
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenizer = train_tokenizer(texts, folder / "tokenizer", vocab_size=300).directory
    run = folder / "real"
    data = ("--set", f"data.paths=[{corpus}]", "--set", f"data.tokenizer={tokenizer}")
    command = (sys.executable, "-m", "moe_megatron", "train", *TRAINING, *data, "--run-dir", run)
    training = start_program(command, log=folder / "training.log", directory=folder)
    try:
        training.wait_for("metrics: http://")
        with closing(_monitor(run, SMALL_SCRAPE)) as prometheus:
            time.sleep(seconds)
            return _boards(prometheus, "4", SMALL_SCRAPE, REAL)
    finally:
        training.kill()


def _made_up(folder: Path, seconds: float) -> dict[str, dict]:
    """The dashboards that look different for a large run."""
    run, end = folder / "made_up", threading.Event()
    server = threading.Thread(target=large_run.serve_large_run, args=(run, end.is_set))
    server.start()
    try:
        while not (run / TARGETS_FILE).exists():
            time.sleep(0.1)
        with closing(_monitor(run, LARGE_SCRAPE)) as prometheus:
            time.sleep(seconds)
            layer = str(large_run.LAYERS[large_run.WORST])
            found = _boards(prometheus, layer, LARGE_SCRAPE, MADE_UP)
            return {f"large_{name}": found[name] for name in LARGE}
    finally:
        end.set()
        server.join()


def _monitor(run: Path, scrape: float) -> LocalPrometheus:
    return LocalPrometheus(run, MonitorOptions(interval=f"{scrape:g}s"))


def _boards(monitor: LocalPrometheus, layer: str, scrape: float, caption: str) -> dict[str, dict]:
    prometheus = PrometheusApi(monitor.url)
    (series,) = prometheus.query("moe_train_lm_loss[1d]")
    recorded = Recorded(
        prometheus=prometheus,
        run=series["metric"]["run"],
        layer=layer,
        start=float(series["values"][0][0]),
        end=float(series["values"][-1][0]),
        scrape=scrape,
        caption=caption,
    )
    return {
        name.removesuffix(".json"): board(dashboard, recorded)
        for name, dashboard in dashboard_json().items()
    }


if __name__ == "__main__":
    main()
