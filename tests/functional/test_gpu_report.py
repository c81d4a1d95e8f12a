"""The GPU report on a CPU: the same stages with tiny shapes, and stages that go wrong."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.gpu_report.__main__ import main, make_report
from benchmarks.gpu_report.facts import Facts
from benchmarks.gpu_report.report import JSON_FILE, TABLE_FILE
from benchmarks.gpu_report.stages import FOLDER, PROFILES, PYTHON, Profile, Stage
from moe_megatron.testing.programs import start_program
from tests.functional.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.timeout(1200)]

WRITE = """
import json, pathlib, sys
line = json.dumps({"name": sys.argv[2], "numbers": {"step_ms": 2.0}, "error": None})
pathlib.Path(sys.argv[1], "results.jsonl").open("a").write(line + "\\n")
"""
HANG = """
import os, pathlib, subprocess, sys, time
words = [sys.executable, "-c", "import time; time.sleep(600)"]
child = subprocess.Popen(words, start_new_session=True)
pathlib.Path(sys.argv[3]).write_text(f"{os.getpid()} {child.pid}")
time.sleep(600)
"""
FAIL = "raise SystemExit('the device is gone')"


def stage(name: str, *programs: str, limit: float = 60.0, mark: Path = Path("mark")) -> Stage:
    words = (PYTHON, "-c", "\n".join(programs), FOLDER, name, str(mark))
    return Stage(name=name, question="?", command=words, limit=limit)


def read(root: Path) -> dict[str, Any]:
    (folder,) = root.iterdir()
    report: dict[str, Any] = json.loads((folder / JSON_FILE).read_text())
    return report | {"folder": folder, "table": (folder / TABLE_FILE).read_text()}


def run(root: Path, *stages: Stage, budget: float = 600.0) -> dict[str, Any]:
    profile = Profile(name="fake", stages=stages, budget=budget)
    assert make_report(profile, root, facts=Facts(), command="fake") == 0
    return read(root)


def statuses(report: dict[str, Any]) -> dict[str, str]:
    return {stage["name"]: stage["status"] for stage in report["stages"]}


def eventually_gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 60
    while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(psutil.pid_exists(pid) for pid in pids)


# --- the stages themselves -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of the tiny profile."""
    root = tmp_path_factory.mktemp("results")
    assert main(["--profile", "tiny", "--output", str(root)]) == 0
    return read(root)


@pytest.mark.deep
def test_every_stage_that_needs_no_gpu_is_ok(tiny: dict[str, Any]) -> None:
    needs = {stage.name: stage.needs for stage in PROFILES["tiny"].stages}
    wanted = {name: "ok" if need is None else "not run" for name, need in needs.items()}
    assert statuses(tiny) == wanted, tiny["table"]


@pytest.mark.deep
def test_fp8_says_what_it_needs(tiny: dict[str, Any]) -> None:
    reason = "needs a GPU with Transformer Engine (Transformer Engine needs a CUDA device)"
    assert f"| main job, fp8 |  | not run |  | {reason} |  |" in tiny["table"].splitlines()


@pytest.mark.deep
def test_every_case_has_its_numbers(tiny: dict[str, Any]) -> None:
    cases = {
        (stage["name"], case["name"]): case["numbers"]
        for stage in tiny["stages"]
        for case in stage["cases"]
    }
    shapes = [
        f"{experts} experts, {routing} routing"
        for experts in (8, 128)
        for routing in ("forced", "real")
    ]
    assert list(cases) == [
        ("main job, fp32", "run"),
        *(("shapes, fp32", name) for name in shapes),
        ("tests", "tests"),
        ("telemetry", "3 layers x 64 experts"),
        ("conversion", "random weights"),
        ("conversion", "conversion"),
        ("conversion", "training on"),
    ]
    for name in shapes:
        numbers = cases["shapes, fp32", name]
        assert numbers["step_ms"] > 0
        assert numbers["model_tflops"] > 0
        assert numbers["mfu"] is numbers["peak_memory_gib"] is None
    assert cases["main job, fp32", "run"]["steps"] == 10
    assert cases["tests", "tests"]["failed"] == 0
    assert cases["telemetry", "3 layers x 64 experts"]["pairs"] == 10
    trained = cases["conversion", "training on"]
    assert trained["last_loss"] < trained["first_loss"]


@pytest.mark.deep
def test_forced_routing_is_more_even_than_real_routing(tiny: dict[str, Any]) -> None:
    (shapes,) = (stage for stage in tiny["stages"] if stage["name"] == "shapes, fp32")
    busiest = {case["name"]: case["numbers"]["busiest_expert"] for case in shapes["cases"]}
    assert busiest["8 experts, forced routing"] < busiest["8 experts, real routing"]


@pytest.mark.deep
def test_report_says_where_it_was_made(tiny: dict[str, Any]) -> None:
    assert tiny["folder"].name == f"{tiny['date'][:10]}-tiny-report"
    assert tiny["command"].startswith("python -m benchmarks.gpu_report --profile tiny")
    assert {"torch", "megatron-core", "Python"} <= set(tiny["versions"])
    assert tiny["choices"]["device"]["value"] == "cpu"
    assert len(tiny["commit"].partition(" ")[0]) == 40
    assert tiny["budget"] == PROFILES["tiny"].budget


@pytest.mark.deep
def test_every_stage_that_ran_has_a_log(tiny: dict[str, Any]) -> None:
    ran = [stage["log"] for stage in tiny["stages"] if stage["status"] != "not run"]
    files = {path.name for path in tiny["folder"].iterdir()}
    assert files == {JSON_FILE, TABLE_FILE, *ran}
    for log in ran:
        assert f"[log]({log})" in tiny["table"]
    assert "device: cpu (" in (tiny["folder"] / "shapes-fp32.txt").read_text()


# --- stages that go wrong ------------------------------------------------------------------------


def test_failing_stage_is_a_row_and_the_next_one_runs(tmp_path: Path) -> None:
    report = run(tmp_path, stage("bad", WRITE, FAIL), stage("good", WRITE))
    assert statuses(report) == {"bad": "failed", "good": "ok"}
    bad = report["stages"][0]
    assert bad["message"] == "the device is gone"
    assert [case["name"] for case in bad["cases"]] == ["bad"]
    assert "the device is gone" in (report["folder"] / bad["log"]).read_text()
    assert any("| failed |" in row and "gone" in row for row in report["table"].splitlines())


def test_stage_without_a_result_has_failed(tmp_path: Path) -> None:
    (empty,) = run(tmp_path, stage("empty", "pass"))["stages"]
    assert (empty["status"], empty["message"]) == ("failed", "it left no result")


@pytest.mark.deep
def test_hanging_stage_is_killed_with_its_children_and_keeps_what_it_had(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    hanging = stage("hanging", WRITE, HANG, limit=8, mark=mark)
    report = run(tmp_path / "results", hanging, stage("good", WRITE))
    assert statuses(report) == {"hanging": "timed out", "good": "ok"}
    assert report["stages"][0]["message"] == "after 8 s"
    assert [case["name"] for case in report["stages"][0]["cases"]] == ["hanging"]
    assert eventually_gone([int(pid) for pid in mark.read_text().split()])


def test_child_of_a_stage_that_ended_does_not_outlive_it(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    leaving = stage("leaving", WRITE, HANG.replace("time.sleep(600)\n", "pass\n"), mark=mark)
    report = run(tmp_path / "results", leaving)
    assert statuses(report) == {"leaving": "ok"}
    assert eventually_gone([int(pid) for pid in mark.read_text().split()])


@pytest.mark.deep
def test_spent_budget_ends_a_stage_and_leaves_out_the_rest(tmp_path: Path) -> None:
    long = stage("long", "import time; time.sleep(600)", limit=500)
    report = run(tmp_path, long, stage("late", WRITE), budget=8)
    assert statuses(report) == {"long": "timed out", "late": "not run"}
    assert report["stages"][1]["message"] == "no time left"


def test_damaged_results_are_a_row(tmp_path: Path) -> None:
    damage = "import pathlib, sys; pathlib.Path(sys.argv[1], 'results.jsonl').write_text('{\\n')"
    (damaged,) = run(tmp_path, stage("damaged", damage))["stages"]
    assert damaged["status"] == "failed"
    assert damaged["cases"][0]["error"].startswith("JSONDecodeError: ")


def test_second_report_of_a_day_has_a_folder_of_its_own(tmp_path: Path) -> None:
    profile = Profile(name="fake", stages=(stage("good", WRITE),), budget=60.0)
    for _ in range(2):
        assert make_report(profile, tmp_path, facts=Facts()) == 0
    first, second = sorted(folder.name for folder in tmp_path.iterdir())
    assert second == f"{first}-2"


DRIVER = """
import sys
from pathlib import Path
from benchmarks.gpu_report.__main__ import make_report
from benchmarks.gpu_report.facts import Facts
from benchmarks.gpu_report.stages import Profile
from tests.functional.test_gpu_report import HANG, WRITE, stage
root, mark = Path(sys.argv[1]), Path(sys.argv[2])
stages = (stage("good", WRITE), stage("hanging", WRITE, HANG, mark=mark), stage("late", WRITE))
sys.exit(make_report(Profile(name="fake", stages=stages, budget=600.0), root, facts=Facts()))
"""


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_ctrl_c_ends_the_stage_and_still_writes_the_report(tmp_path: Path) -> None:
    root, mark = tmp_path / "results", tmp_path / "mark"
    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    program = start_program(
        [sys.executable, "-c", DRIVER, root, mark],
        log=tmp_path / "output.txt",
        directory=ROOT,
        environment=environment,
    )
    try:
        wait_for(lambda: mark.exists() and len(mark.read_text().split()) == 2)
        program.press_ctrl_c()
        assert program.end() == 130, program.output
    finally:
        program.kill()
    report = read(root)
    assert statuses(report) == {"good": "ok", "hanging": "stopped", "late": "not run"}
    assert report["stages"][2]["message"] == "stopped before it"
    assert report["table"] in program.output
    assert eventually_gone([int(pid) for pid in mark.read_text().split()])
