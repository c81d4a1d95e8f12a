import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from moe_megatron.telemetry.sinks.console import (
    ConsoleSink,
    format_duration,
    format_evaluation,
    format_rate,
    format_summary,
)
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.telemetry.values.recent_use import RecentUse
from moe_megatron.telemetry.values.records import EvalRecord, RunInfo, StepRecord
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot

MakeStep = Callable[..., StepRecord]
MakeRun = Callable[..., RunInfo]
Make = Callable[..., RoutingSnapshot]
EVALUATION = EvalRecord(step=120, split="validation", loss=5.0)


def plain_console() -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, width=100, force_terminal=False), file


def test_log_file_gets_a_line_every_interval_steps(
    make_step: MakeStep, make_run: MakeRun, make_snapshot: Make
) -> None:
    console, file = plain_console()
    sink = ConsoleSink(interval=120, console=console)
    sink.start(make_run())
    for step in range(1, 301):
        sink.step(make_step(step), make_snapshot(1))
    lines = file.getvalue().splitlines()
    imbalance = make_snapshot(1).imbalance.max()
    assert lines[0] == "2 MoE layers of 4 experts, top-2"
    assert [line.split(" |")[0] for line in lines[1:]] == [
        "step 1/300",
        "step 120/300",
        "step 240/300",
        "step 300/300",
    ]
    assert lines[2] == (
        "step 120/300 | loss 5.123 | lr 2.0e-3 | 5,120 tok/s "
        f"| imbalance {imbalance:.2f} | ETA 0:01:30"
    )


def test_log_file_gets_the_table_of_the_steps_since_the_last_one(
    make_step: MakeStep, make_run: MakeRun, make_snapshot: Make
) -> None:
    console, file = plain_console()
    sink = ConsoleSink(interval=1000, console=console)
    sink.start(make_run(start_step=100))
    for step in (101, 102):
        sink.step(make_step(step), make_snapshot(step))
    sink.evaluation(EVALUATION)
    sink.step(make_step(103), make_snapshot(103))
    sink.close()
    text = file.getvalue()
    assert "resuming after step 100 of 300" in text
    assert "validation at step 120 | loss 5.000 | perplexity 148.41" in text
    assert "expert load, steps 101 to 102" in text
    assert "expert load, steps 103 to 103" in text
    assert "\x1b" not in text


def test_unknown_and_skipped_values_are_marked(make_step: MakeStep, make_run: MakeRun) -> None:
    console, file = plain_console()
    sink = ConsoleSink(console=console)
    sink.start(make_run())
    sink.step(make_step(1, loss=None, learning_rate=None, skipped=True), None)
    sink.step(make_step(10, loss=float("nan")), None)
    sink.close()
    assert "loss - (skipped) | lr - | 5,120 tok/s | ETA" in file.getvalue()
    assert "loss nan |" in file.getvalue()


def test_terminal_redraws_at_most_four_times_per_second(
    make_step: MakeStep, make_run: MakeRun, make_snapshot: Make
) -> None:
    file = io.StringIO()
    console = Console(file=file, width=100, height=30, force_terminal=True)
    now = [0.0]
    sink = ConsoleSink(console=console, clock=lambda: now[0])
    sink.start(make_run())
    for step in range(1, 101):  # 2 seconds
        sink.step(make_step(step), make_snapshot(step))
        now[0] += 0.02
    frames = file.getvalue().count("grad norm")
    assert 6 <= frames <= 8
    sink.evaluation(EVALUATION)
    sink.close()
    last = Console(file=io.StringIO()).render_str(file.getvalue()[-4000:]).plain
    assert "step 100/300" in file.getvalue()
    assert "max/mean" in last
    assert "validation at step 120" in file.getvalue()
    assert file.getvalue().endswith("\x1b[?25h")  # the cursor is back


def test_live_view_leaves_what_others_print_where_it_goes(
    make_step: MakeStep, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    file = io.StringIO()
    sink = ConsoleSink(console=Console(file=file, width=100, height=30, force_terminal=True))
    sink.start(make_run())
    print("Megatron's word, which its log gets")
    sink.step(make_step(1), None)
    sink.close()
    assert capsys.readouterr().out == "Megatron's word, which its log gets\n"
    assert "Megatron" not in file.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (82.4, "0:01:22"), (100 * 3600, "100:00:00")]
)
def test_format_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_format_rate() -> None:
    assert [format_rate(rate) for rate in (2e-3, 1.24e-5, 0.0, None)] == [
        "2.0e-3",
        "1.2e-5",
        "0.0e0",
        "-",
    ]


def test_summary_tells_result_load_and_paths(make_snapshot: Make) -> None:
    profile = RoutingProfile.from_snapshots([make_snapshot(1), make_snapshot(2)])
    text = format_summary(
        evaluation=EVALUATION,
        load=profile,
        checkpoint=Path("run/checkpoints/iter_0000120"),
        metrics=Path("run/metrics.jsonl"),
        report=Path("run/report.html"),
    )
    lines = text.splitlines()
    assert lines[0] == "validation loss 5.0000 | perplexity 148.41 (step 120)"
    assert "expert load (2 steps, 100 tokens)" in lines
    assert "dead experts: none" in lines
    assert lines[-3:] == [
        "checkpoint  run/checkpoints/iter_0000120",
        "metrics     run/metrics.jsonl",
        "report      run/report.html",
    ]
    assert "\x1b" not in text


def test_evaluation_of_pairs_says_their_measures_in_place_of_perplexity() -> None:
    measures = {"reward_margin": 0.25, "reward_accuracy": 0.75}
    record = EvalRecord(step=4, split="validation", loss=0.5, measures=measures)
    assert format_evaluation(record) == (
        "validation at step 4 | loss 0.500 | reward margin 0.250 | reward accuracy 0.750"
    )
    assert format_summary(evaluation=record).splitlines()[0] == (
        "validation loss 0.5000 | reward margin 0.250 | reward accuracy 0.750 (step 4)"
    )


def test_summary_and_report_agree_on_dead_experts(make_snapshot: Make) -> None:
    recent, early = RecentUse(), np.array([[97, 3], [50, 50]])
    late = np.array([[100, 0], [50, 50]])  # expert 1 of the first layer dies after step 20
    snapshots = [
        make_snapshot(
            step,
            num_experts=2,
            tokens_per_expert=early if step <= 20 else late,
            dropped=np.zeros(2, dtype=np.int64),
        )
        for step in range(1, 131)
    ]
    for snapshot in snapshots:
        recent.add(snapshot)
    text = format_summary(load=RoutingProfile.from_snapshots(snapshots), recent=recent)
    assert text.endswith("dead experts: 1 of 4 (layer 2: 1) in steps 31 to 130")
    assert [line.split()[-1] for line in text.splitlines()[-3:-1]] == ["1", "0"]


def test_summary_leaves_out_what_is_not_known(make_snapshot: Make) -> None:
    assert format_summary() == ""
    assert "expert load (step 1, 50 tokens)" in format_summary(load=make_snapshot(1))
