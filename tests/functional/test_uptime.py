"""`moe-megatron uptime` on a real run of two processes that is killed, resumed and done."""

import json
import time

import pytest

from moe_megatron.cli import pretrain
from moe_megatron.run.uptime import uptime
from moe_megatron.telemetry.journal import read_events
from moe_megatron.testing.distributed import RankError, start_ranks
from moe_megatron.testing.jobs import step_records

pytestmark = pytest.mark.distributed

WORDS = [
    *("--config", "test_tiny", "--mock-data", "--run-dir", "run", "--train-iters", "60"),
    *("--save-interval", "20", "--set", "training.eval_interval=20"),
    *("--set", "telemetry.plain_console=true", "--set", "telemetry.console_interval=1"),
]


@pytest.mark.deep
def test_every_second_of_a_run_with_a_kill_and_a_resume(tmp_path, cache, moe):
    run = tmp_path / "run"
    given = {"directory": tmp_path, "environment": {"MOE_MEGATRON_CACHE": str(cache)}}
    with start_ranks(pretrain.main, WORDS, **given) as ranks:
        ranks.wait_for("step 25/")
        assert uptime(run).state == "running"
        ranks.kill()
        ranks.wait()
    killed = uptime(run)
    assert killed.state == "vanished"
    assert killed.checkpoint == 20
    assert killed.advice == f"go on from step 20 with: moe-megatron train --resume {run}"
    on_record = step_records(run)
    lost = [record for record in on_record if record.step > 20]

    time.sleep(0.5)  # the queue; without it, the next attempt begins as this one ends
    resume = ["--config", "run/config.yaml", "--run-dir", "run", "--load", "run/checkpoints"]
    with start_ranks(pretrain.main, resume, **given) as ranks:
        ends = ranks.wait()
    assert [end.result for end in ends] == [0, 0], RankError(ends)

    found = uptime(run)
    assert (found.state, found.step, found.checkpoint) == ("done", 60, 60)
    used = found.account
    rows = used.rows()
    assert sum(rows.values()) == pytest.approx(used.wall, abs=1e-6)
    assert all(seconds >= 0 for seconds in rows.values()), rows
    first, second = found.attempts.list
    assert (first.first_step, second.first_step, second.resumed_step) == (1, 21, 20)
    assert (used.kept_steps, used.lost_steps) == (60, len(lost))
    assert used.lost["recomputed"] >= sum(record.step_seconds for record in lost) - 1e-3
    kept = [r.step_seconds for r in step_records(run)]
    assert used.kept + used.lost["warmup"] >= sum(kept) - 1e-3
    for row in ("startup", "load", "save", "waiting", "evaluation"):
        assert rows[row] > 0, row
    assert used.started < next(iter(read_events(run))).time  # from the start of the process

    verb = moe(tmp_path, "uptime", "run", "--json")
    assert verb.end() == 0
    assert json.loads(verb.output)[0]["seconds"] == pytest.approx(rows, abs=1e-6)
