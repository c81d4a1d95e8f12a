"""A real training of two processes, scraped while it runs, killed, resumed and scraped again."""

import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from moe_megatron.cli import pretrain
from moe_megatron.telemetry.catalog import metrics
from moe_megatron.telemetry.identity import run_id
from moe_megatron.telemetry.sinks.jsonl import read_metrics, read_routing
from moe_megatron.telemetry.values.records import StepRecord
from moe_megatron.testing.distributed import RankError, start_ranks

pytestmark = pytest.mark.distributed

TOKEN = "only-for-this-test"
# It is killed long after it has saved, and long before it would save again.
NUM_STEPS, SAVE_INTERVAL, KILLED_AFTER = 60, 20, 30


def scrape(url):
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read().decode()


def parse(text):
    families = text_string_to_metric_families(text)
    return {(s.name, *sorted(s.labels.items())): s.value for f in families for s in f.samples}


def targets_of(run_dir):
    file = run_dir / "prometheus_targets.json"
    return json.loads(file.read_text())[0]["targets"] if file.exists() else []


def watch(ranks, run_dir, until):
    """Scrapes from the moment the target file is there to step `until` or the end of the run."""
    texts = []
    ranks.wait_for("/metrics\n")
    address = re.search(r"metrics: http://(127\.0\.0\.1:\d+)/metrics\n", ranks.output())[1]
    # A run that was killed has left its file, and this one replaces it a moment after the line.
    while targets_of(run_dir) != [address] and ranks.running():
        time.sleep(0.02)
    assert targets_of(run_dir) == [address]
    url = f"http://{address}/metrics"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(url, timeout=60)
    while ranks.running():
        try:
            texts.append(scrape(url))
        except OSError:  # the run is over
            break
        if parse(texts[-1])["moe_train_step",] >= until:
            break
        time.sleep(0.02)
    return texts


@pytest.fixture(scope="module")
def recorded(corpus, tokenizer, cache, tmp_path_factory):
    """Scrapes of a run that is killed, of its second process, and the run's folder."""
    folder = tmp_path_factory.mktemp("metrics")
    (folder / "token").write_text(TOKEN + "\n")
    settings = {
        "data.paths": f"[{corpus}]",
        "data.tasks": "[text]",
        "data.tokenizer": str(tokenizer),
        "checkpoint.save_interval": SAVE_INTERVAL,
        "telemetry.peak_tflops": 0.1,
        "parallel.expert_parallel_size": 2,
    }
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    words += ["--config", "test_tiny", "--train-iters", str(NUM_STEPS), "--run-dir", "run"]
    words += ["--metrics-port", "0", "--metrics-token-file", "token", "--log-format", "json"]
    words += ["--metrics-expert-detail", "full", "--tensorboard-dir", "events"]
    resume = ["--config", "run/config.yaml", "--run-dir", "run", "--load", "run/checkpoints"]
    given = {"directory": folder, "environment": {"MOE_MEGATRON_CACHE": str(cache)}}
    with start_ranks(pretrain.main, words, **given) as ranks:
        before = watch(ranks, folder / "run", KILLED_AFTER)
        ranks.kill()
    with start_ranks(pretrain.main, resume, **given) as ranks:
        after = watch(ranks, folder / "run", NUM_STEPS + 1)
        ends = ranks.wait()
    assert [end.result for end in ends] == [0, 0], RankError(ends)
    return before, after, folder


def test_scrapes_are_well_formed_and_from_the_catalog(recorded):
    before, after, _ = recorded
    for text in (before[-1], after[-1]):
        names = {metric.name for metric in metrics()}
        assert {line.split()[2] for line in text.splitlines() if line[0] == "#"} <= names
        if shutil.which("promtool") is None:
            pytest.skip("no promtool here; apt-get install prometheus")
        checked = subprocess.run(
            ["promtool", "check", "metrics"], input=text, capture_output=True, text=True
        )
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_every_metric_of_the_catalog_has_a_value_in_a_real_run(recorded):
    before, after, _ = recorded
    found = {line.split()[2] for text in (before[-1], after[-1]) for line in text.splitlines()
             if line.startswith("# TYPE")}  # fmt: skip
    assert {metric.name for metric in metrics()} - found == {"moe_eval_loss"} - found


def test_counters_never_go_back_over_a_kill_and_a_resume(recorded):
    before, after, _ = recorded
    scrapes = [parse(text) for text in before + after]
    # Times and observations are of the process; the rest is of the run.
    kept = ("moe_train_steps", "moe_train_tokens", "moe_tokens_", "moe_expert_tokens", "flops")
    counters = [k for k in scrapes[0] if k[0].endswith("_total") and any(w in k[0] for w in kept)]
    assert len(counters) > 10
    for key in counters:
        values = [found[key] for found in scrapes]
        assert values == sorted(values), key
    steps = [found["moe_train_step",] for found in scrapes]
    assert steps[len(before)] < steps[len(before) - 1]  # some steps were made again


def test_counters_agree_to_the_unit_with_the_logs(recorded):
    before, after, folder = recorded
    routing = list(read_routing(folder / "run" / "routing.jsonl"))
    steps = [r for r in read_metrics(folder / "run" / "metrics.jsonl") if isinstance(r, StepRecord)]
    assert [s.step for s in routing] == [r.step for r in steps] == list(range(1, NUM_STEPS + 1))
    highest = parse(before[-1])["moe_train_step",]
    compared = 0
    for found in map(parse, [*before, *after]):
        step = int(found["moe_train_step",])
        if found["moe_train_steps_total",] != step or not step:
            continue  # steps that are made again, or none
        compared += step > highest
        assert found["moe_train_tokens_total",] == sum(r.tokens for r in steps[:step])
        counts = np.sum([s.tokens_per_expert for s in routing[:step]], axis=0)
        dropped = np.sum([s.dropped for s in routing[:step]], axis=0)
        for index, layer in enumerate(routing[0].layers):
            at = ("layer", str(layer))
            assert found["moe_tokens_routed_total", at] == counts[index].sum()
            assert found["moe_tokens_dropped_total", at] == dropped[index]
            for expert, count in enumerate(counts[index]):
                assert found["moe_expert_tokens_total", ("expert", str(expert)), at] == count
    assert compared > 2


def test_processes_and_phases_are_measured(recorded):
    found = parse(recorded[1][-1])
    for rank in "01":
        assert found["moe_rank_compute_seconds", ("rank", rank)] > 0
        assert found["moe_rank_memory_bytes", ("rank", rank)] > 1e8
    phases = {k[1][1]: v for k, v in found.items() if k[0] == "moe_train_phase_seconds_total"}
    assert min(phases[p] for p in ("data", "forward_backward", "optimizer", "telemetry")) > 0
    assert found["moe_train_model_flops_total",] > 0
    assert found["moe_train_mfu_ratio",] > 0


def test_target_is_gone_when_the_run_is_over(recorded):
    assert not (recorded[2] / "run" / "prometheus_targets.json").exists()


def test_json_logs_are_one_object_a_line_without_training_text(recorded, corpus):
    lines = []
    for rank in (0, 1):
        path = recorded[2] / "run" / "logs" / f"rank{rank}.jsonl"
        if rank and not path.exists():
            continue  # it had nothing to say
        lines += [json.loads(line) for line in path.read_text().splitlines()]
        assert "quick brown fox" not in path.read_text()
    assert "quick brown fox" in corpus.read_text()
    keys = ["time", "level", "logger", "message", "run_id", "rank", "trace_id", "span_id", "step"]
    assert all(list(line)[: len(keys)] == keys for line in lines)
    assert {line["run_id"] for line in lines} == {run_id(recorded[2] / "run")}
    assert len({line["trace_id"] for line in lines}) == 1
    of_steps = [line for line in lines if line["message"] == "step"]
    assert of_steps[-1]["step"] == NUM_STEPS
    assert of_steps[-1]["loss"] > 0


def test_routing_is_in_tensorboard(recorded):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(recorded[2] / "events"))
    events.Reload()
    routing = list(read_routing(recorded[2] / "run" / "routing.jsonl"))
    written = {e.step: e.value for e in events.Scalars("moe_expert_load_max_ratio/layer_1")}
    assert written.keys() >= {NUM_STEPS}
    for snapshot in routing[-5:]:
        assert written[snapshot.step] == pytest.approx(snapshot.imbalance[0])
    assert "moe_expert_load_ratio" in events.Tags()["histograms"]
