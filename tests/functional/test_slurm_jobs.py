"""Batch jobs on a real SLURM that train in no time: what the common script does with a verdict.

Everything is real but the ranks: `moe-megatron slurm node` is replaced by a shell script that
leaves behind what ranks do, a tracker and a journal. `test_slurm.py` has real ranks.
"""

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moe_megatron.cli.main import main
from moe_megatron.platform.slurm.script import COMMON
from moe_megatron.platform.slurm.submit import jobs_of
from moe_megatron.testing.slurm_cluster import SlurmCluster, why_not

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "slurm" / "pretrain_demo_moe.sbatch"
STEPS = 250

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]

COMMAND = """\
#!/usr/bin/env bash
# moe-megatron, but for the ranks.
if [ "$1 $2" = "slurm node" ]; then
    tracker=$MOE_RUN/checkpoints/latest_checkpointed_iteration.txt
    if [ "$SLURM_NODEID" = 0 ]; then
        step=$(cat "$tracker" 2> /dev/null || echo null)
        printf '{"time": 1.0, "kind": "launched", "job": "%s", "step": %s}\\n' \\
            "$SLURM_JOB_ID" "$step" >> "$MOE_RUN/events.jsonl"
        echo "$SLURM_JOB_ID $SLURM_JOB_NODELIST" >> "$MOE_RUN/attempts"
    fi
    save() { mkdir -p "$MOE_RUN/checkpoints"; echo "$1" > "$tracker"; }
    source "$MOE_RANKS"
    exit
fi
exec PYTHON -m moe_megatron "$@"
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    if reason := why_not():
        pytest.skip(reason)
    with SlurmCluster(nodes=2) as cluster:
        yield cluster


@pytest.fixture
def site(cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that stands for examples/slurm, with a site's settings."""
    folder = tmp_path / "site"
    folder.mkdir()
    (tmp_path / "run").mkdir()
    (folder / "moe-megatron").write_text(COMMAND.replace("PYTHON", sys.executable))
    (folder / "moe-megatron").chmod(0o755)
    shutil.copy(COMMON, folder / "_job.sh")
    (folder / "_env.sh").write_text(f"export PATH={folder}:$PATH\n")
    settings = {
        **cluster.environment,
        "MOE_SLURM": str(folder),
        "MOE_RUN": str(tmp_path / "run"),
        "MOE_RANKS": str(folder / "ranks.sh"),
        "PYTHONPATH": str(ROOT),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return folder


@pytest.fixture
def submit(cluster: SlurmCluster, site: Path, tmp_path: Path) -> Callable[..., str]:
    """Submits the shipped script, whose ranks are these lines of shell."""

    def run(ranks: str, *options: str) -> str:
        (site / "ranks.sh").write_text(ranks)
        log = f"--output={tmp_path / 'batch.log'}"
        return cluster.submit(log, "--nodes=1", *options, SCRIPT, cwd=ROOT)

    return run


def said(tmp_path: Path) -> str:
    return (tmp_path / "batch.log").read_text()


def attempts(tmp_path: Path) -> list[str]:
    path = tmp_path / "run" / "attempts"
    return path.read_text().splitlines() if path.exists() else []


def end_of(cluster: SlurmCluster, job: str, tmp_path: Path) -> str:
    cluster.wait_for(job, "COMPLETED", "FAILED", "CANCELLED", seconds=120)
    return cluster.field(job, "ExitCode") + " " + said(tmp_path)


def test_job_starts_again_until_the_last_step(cluster, submit, tmp_path) -> None:
    """In between, Prometheus does not miss the attempt that was killed."""
    target = "$MOE_RUN/prometheus_targets.json"
    killed = f"save 9; echo x > {target}; exit 1"
    job = submit(f"if [ -e $tracker ]; then ls {target}; save {STEPS}; else {killed}; fi")
    assert end_of(cluster, job, tmp_path).startswith("0:0")
    assert len(attempts(tmp_path)) == 2
    assert "the attempt came to step 9 of 250" in said(tmp_path)
    assert "verdict 0, done" in said(tmp_path)
    (log,) = (tmp_path / "run" / "slurm" / "logs" / f"{job}.1").glob("node0.log")
    assert "No such file" in log.read_text()


@pytest.mark.deep
def test_job_without_progress_ends_and_its_chain_is_cancelled(cluster, submit, tmp_path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("9")
    first = submit("sleep 4; exit 1", "--dependency=singleton")
    second = submit("sleep 4; exit 1", "--dependency=singleton")
    assert end_of(cluster, first, tmp_path).startswith("93:0")
    assert f"cancelling job {second}" in said(tmp_path)
    assert cluster.field(second, "JobState") == "CANCELLED"
    assert len(attempts(tmp_path)) == 1


@pytest.mark.deep
def test_job_with_a_mistake_is_not_started_again(cluster, submit, tmp_path) -> None:
    ended = '{"time": 2.0, "kind": "ended", "code": 2}'
    job = submit(f"echo '{ended}' >> $MOE_RUN/events.jsonl; exit 2")
    assert end_of(cluster, job, tmp_path).startswith("2:0")
    assert len(attempts(tmp_path)) == 1


@pytest.mark.deep
def test_job_hands_over_to_the_next_of_its_chain(cluster, submit, tmp_path) -> None:
    ranks = f"sleep 3; [ -e $tracker ] && save {STEPS} || save 9"
    first = submit(ranks, "--dependency=singleton")
    second = submit(ranks, "--dependency=singleton")
    assert end_of(cluster, second, tmp_path).startswith("0:0")
    assert [line.split()[0] for line in attempts(tmp_path)] == [first, second]
    assert cluster.field(first, "ExitCode") == "75:0"
    assert cluster.field(first, "Restarts") == "0"


@pytest.mark.deep
def test_job_that_a_person_cancels_is_not_started_again(cluster, submit, tmp_path) -> None:
    job = submit("trap 'save 9; exit 0' TERM; while :; do sleep 0.1; done")
    cluster.wait_for(job, "RUNNING")
    while not attempts(tmp_path):
        time.sleep(0.1)
    cluster.run("scancel", job)
    cluster.wait_for(job, "CANCELLED")
    assert cluster.field(job, "JobState") == "CANCELLED"


@pytest.mark.deep
def test_job_is_warned_of_its_time_limit_saves_and_starts_again(cluster, submit, tmp_path) -> None:
    """SLURM sends its signal up to a minute before it is due."""
    saves = "trap 'save 9; exit 0' USR1; while :; do sleep 0.1; done"
    ranks = f"if [ -e $tracker ]; then save {STEPS}; else {saves}; fi"
    job = submit(ranks, "--time=1", "--signal=B:USR1@10")
    assert end_of(cluster, job, tmp_path).startswith("0:0")
    assert "time is short" in said(tmp_path)
    assert "the attempt came to step 9 of 250" in said(tmp_path)
    assert len(attempts(tmp_path)) == 2


def site_check(site: Path, body: str) -> None:
    check = site / "node_ok"
    check.write_text(f"#!/bin/sh\n{body}\n")
    check.chmod(0o755)
    with (site / "_env.sh").open("a") as file:
        file.write(f"MOE_CHECK_OPTIONS=(--site-check {check})\n")


@pytest.mark.deep
def test_node_that_is_not_well_is_excluded(cluster, site, submit, tmp_path) -> None:
    site_check(site, '[ "$SLURMD_NODENAME" != n1 ] || { echo broken fan; exit 1; }')
    job = submit(f"save {STEPS}")
    assert end_of(cluster, job, tmp_path).startswith("0:0"), said(tmp_path)
    assert "node n1 is not well (code 1):\nFAIL  site check" in said(tmp_path)
    assert "broken fan" in said(tmp_path)
    assert attempts(tmp_path) == [f"{job} n2"]


@pytest.mark.deep
def test_job_none_of_whose_nodes_is_well_ends(cluster, site, submit, tmp_path) -> None:
    site_check(site, "exit 1")
    job = submit(f"save {STEPS}", "--nodes=2")
    assert end_of(cluster, job, tmp_path).startswith("1:0")
    assert "the environment is at fault rather than the nodes" in said(tmp_path)
    assert attempts(tmp_path) == []


def test_commands_submit_watch_and_show_a_run(cluster, site, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MOE_SLURM")
    monkeypatch.setenv("MOE_RUN", "runs/a")
    (site / "ranks.sh").write_text(f"echo console; save {STEPS}")
    words = ["--nodes", "2", "--processes-per-node", "1", "--run-dir", "runs/a"]
    assert main(["slurm", "submit", *words, "--env", str(site / "_env.sh")]) == 0
    out = capsys.readouterr().out
    (job,) = jobs_of(Path("runs/a"))
    assert out == (
        f"job {job}: 2 nodes, 2 ranks\nwatch it with: moe-megatron slurm status runs/a\n"
    )
    cluster.wait_for(job, "COMPLETED", "FAILED", seconds=60)
    batch = (tmp_path / "runs" / "a" / "slurm" / f"{job}.log").read_text()
    assert cluster.field(job, "JobState") == "COMPLETED", batch
    assert main(["slurm", "status", "runs/a"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "run         runs/a"
    assert lines[1].startswith(f"job {job:<7} completed on n[1-2]")
    assert lines[2:] == [
        f"last step   {STEPS} of {STEPS}",
        f"checkpoint  step {STEPS}",
        f"verdict     0, done: step {STEPS} of {STEPS} is in a checkpoint",
    ]
    for words, text in ((["--node", "1"], "console"), (["--batch"], "verdict 0, done")):
        shown = cluster.run(sys.executable, "-m", "moe_megatron", "slurm", "logs", "runs/a", *words)
        assert text in shown
    assert main(["slurm", "logs", "runs/a", "--node", "7"]) == 2
    assert "node7.log does not exist; nodes are numbered from 0" in capsys.readouterr().err


@pytest.mark.deep
def test_job_is_submitted_anew_where_slurm_excludes_no_nodes_from_one_that_waits(
    cluster, site, submit, tmp_path, monkeypatch
) -> None:
    site_check(site, '[ "$SLURMD_NODENAME" != n1 ]')
    shim = '#!/bin/sh\n[ "$1" != update ] || exit 1\nexec /usr/bin/scontrol "$@"\n'
    (site / "scontrol").write_text(shim)
    (site / "scontrol").chmod(0o755)
    job = submit(f"save {STEPS}")
    deadline = time.monotonic() + 90
    while not attempts(tmp_path):
        assert time.monotonic() < deadline, said(tmp_path)
        time.sleep(0.2)
    (line,) = attempts(tmp_path)
    again, node = line.split()
    assert (int(again) > int(job), node) == (True, "n2")
    cluster.wait_for(again, "COMPLETED")
    assert "submitting anew without n1" in said(tmp_path)
    assert cluster.field(job, "JobState") == "CANCELLED"


@pytest.mark.deep
def test_programs_run_in_the_container_that_the_site_names(
    cluster, site, submit, tmp_path, monkeypatch
) -> None:
    """A program in the place of apptainer notes how it is called, and runs the rest."""
    program = site / "apptainer"
    shift = 'until [ "$1" = moe.sif ]; do shift; done; shift'
    program.write_text(f'#!/bin/bash\necho "$@" >> {site}/calls\n{shift}\nexec "$@"\n')
    program.chmod(0o755)
    for name, value in (("CONTAINER", "apptainer"), ("IMAGE", "moe.sif"), ("MOUNTS", "/a:/b")):
        monkeypatch.setenv(f"MOE_{name}", value)
    job = submit(f"save {STEPS}")
    assert end_of(cluster, job, tmp_path).startswith("0:0"), said(tmp_path)
    calls = (site / "calls").read_text().splitlines()
    start = f"exec --bind {ROOT},/a:/b --pwd {ROOT} moe.sif moe-megatron slurm "
    assert [call.removeprefix(start).split()[0] for call in calls] == [
        *("verdict", "check-node", "node", "verdict")
    ]


def test_container_that_is_not_known_is_refused(cluster, submit, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MOE_CONTAINER", "docker")
    job = submit("exit 0")
    assert end_of(cluster, job, tmp_path).startswith("2:0")
    assert "it must be none, pyxis or apptainer" in said(tmp_path)
