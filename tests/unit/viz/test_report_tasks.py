"""The report of a run with named tasks says what became of each, and which expert is whose."""

import re

import numpy as np

from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.telemetry.values.records import EvalRecord
from moe_megatron.telemetry.values.task_scores import TaskScore
from moe_megatron.viz.report_tasks import tasks_section


def record(step: int, code: float, prose: float) -> EvalRecord:
    tasks = (
        TaskScore(name="code", tokens=40, loss=code, accuracy=0.25, kept=(0.9, 0.5)),
        TaskScore(name="<prose>", tokens=60, loss=prose),
    )
    return EvalRecord(step=step, split="validation", loss=code, tasks=tasks)


def profile(**by_task: list[list[int]]) -> RoutingProfile:
    found = RoutingProfile.empty(layers=(1, 3), num_experts=3, top_k=1)
    found.by_task = {name: np.array(counts) for name, counts in by_task.items()}
    return found


def cells(html: str) -> list[str]:
    return re.findall(r"<td>(.*?)</td>", html)


def test_every_task_is_shown_before_and_after_and_over_steps() -> None:
    html = tasks_section([record(0, 4.0, 2.0), record(10, 3.0, 2.5), record(20, 2.0, 3.0)], None)
    assert cells(html) == [
        *("code", "40", "4.000 -&gt; 2.000 (-2.000)", "54.6 -&gt; 7.4", "25.0% -&gt; 25.0%"),
        *("70.0% (least 50.0%)", "&lt;prose&gt;", "60", "2.000 -&gt; 3.000 (+1.000)"),
        *("7.4 -&gt; 20.1", "-", "-"),
    ]
    assert html.count("<figure") == 2
    assert "<prose>" not in html
    only_losses = [
        EvalRecord(step=0, split="validation", loss=1.0, tasks=(record(0, 1, 1).tasks[1],))
    ]
    assert tasks_section(only_losses, None).count("<figure") == 1, "no accuracy, no second end"


def test_the_expert_that_is_most_a_tasks_own_is_named() -> None:
    html = tasks_section([], profile(code=[[5, 5, 0], [0, 0, 10]], prose=[[5, 5, 0], [6, 4, 0]]))
    assert cells(html) == [
        *("code", "50.0%", "layer 3, expert 2", "100.0%", "50.0%"),
        *("prose", "50.0%", "layer 3, expert 0", "60.0%", "30.0%"),
    ]


def test_a_run_without_tasks_has_no_such_section() -> None:
    assert tasks_section([], None) == tasks_section([], profile()) == ""
    assert tasks_section([EvalRecord(step=4, split="validation", loss=1.0)], profile()) == ""
