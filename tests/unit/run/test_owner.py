"""One job at a time owns a run folder."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from moe_megatron.errors import CheckpointError, OccupiedError
from moe_megatron.run import owner
from moe_megatron.run.folder import claim_fresh
from moe_megatron.run.heartbeat import holding
from moe_megatron.run.owner import (
    OWNER,
    STALE_SECONDS,
    TOKEN_VARIABLE,
    Owner,
    claim,
    is_alive,
    is_ours,
    outlast,
    owner_of,
    release,
    writing,
)

HOLDER = """
import sys, time
from pathlib import Path
from moe_megatron.run.owner import claim, writing
folder = Path(sys.argv[1])
claim(folder)
with writing(folder):
    print("holds", flush=True)
    time.sleep(100)
"""


def hold(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, folder], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "holds\n"
    return process


def as_record(folder, number=1, **changes):
    """A record of another machine."""
    other = replace(Owner.this(), host="node7", machine="another", pid=123, **changes)
    (folder / OWNER).mkdir(parents=True, exist_ok=True)
    path = folder / OWNER / str(number)
    path.write_text(json.dumps(asdict(other)))
    return path


def test_living_owner_is_refused_by_name_and_a_killed_one_is_taken_over(tmp_path):
    folder = tmp_path / "run"
    holder = hold(folder)
    try:
        before = sorted(path.name for path in folder.rglob("*"))
        with pytest.raises(
            OccupiedError,
            match=rf"run folder .*run belongs to pid {holder.pid} on .*, started at 20..-.*; stop "
            "it, or choose another --run-dir.",
        ):
            claim(folder)
        assert sorted(path.name for path in folder.rglob("*")) == before
        assert claim_fresh(folder).run_dir == tmp_path / "run-2"
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        ours = claim(folder)
    finally:
        holder.kill()
        holder.communicate()
    assert owner_of(folder).pid == os.getpid()
    release(ours)
    assert owner_of(folder) is None
    release(claim(folder))


def test_owner_of_another_machine_lives_as_long_as_its_record_is_refreshed(tmp_path):
    record = as_record(tmp_path)
    with pytest.raises(OccupiedError, match="belongs to pid 123 on node7"):
        claim(tmp_path)
    old = time.time() - STALE_SECONDS - 1
    os.utime(record, (old, old))
    release(claim(tmp_path))


def test_requeued_job_takes_over_from_its_earlier_self(tmp_path, monkeypatch):
    as_record(tmp_path, job="41", restart=0)
    monkeypatch.setenv("SLURM_JOB_ID", "40")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with pytest.raises(OccupiedError, match=r"pid 123 \(job 41\) on node7"):
        claim(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    release(claim(tmp_path))


def test_one_of_many_takes_a_dead_owners_folder(tmp_path):
    record = as_record(tmp_path)
    os.utime(record, (0, 0))

    def attempt(_):
        try:
            return claim(tmp_path)
        except OccupiedError:
            return None

    with ThreadPoolExecutor(16) as pool:
        claims = [ours for ours in pool.map(attempt, range(64)) if ours is not None]
    assert len(claims) == 1
    assert claims[0].lost is None


def test_loss_is_noticed(tmp_path):
    first = claim(tmp_path / "taken")
    as_record(tmp_path / "taken", number=2)
    assert "another job has taken the run folder" in first.lost
    second = claim(tmp_path / "moved")
    (tmp_path / "moved").rename(tmp_path / "elsewhere")
    assert "was removed while the run was writing to it" in second.lost


def test_process_whose_folder_is_taken_ends_at_once(tmp_path):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from moe_megatron.run import heartbeat; from moe_megatron.run.owner import claim\n"
        "heartbeat._SECONDS = 0.05\n"
        "with heartbeat.holding(claim(Path(sys.argv[1]))):\n"
        "    print('holds', flush=True); time.sleep(100)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "holds\n"
        as_record(tmp_path, number=2)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "another job has taken the run folder" in error


def test_heartbeat_refreshes_the_record(tmp_path, monkeypatch):
    monkeypatch.setattr("moe_megatron.run.heartbeat._SECONDS", 0.01)
    with holding(claim(tmp_path)) as ours:
        os.utime(ours.record, (0, 0))
        deadline = time.monotonic() + 60
        while ours.record.stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert owner_of(tmp_path) is None


def test_unused_folder_disappears_with_its_claim(tmp_path):
    release(claim(tmp_path / "new"))
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    release(claim(tmp_path / "old"))
    assert (tmp_path / "old").exists()


def test_new_owner_waits_for_writers_of_the_old_one(tmp_path, monkeypatch):
    release(claim(tmp_path))
    monkeypatch.setattr(owner, "_PATIENCE_SECONDS", 0.2)
    with (
        writing(tmp_path),
        pytest.raises(OccupiedError, match="processes of an earlier job still write to the run"),
    ):
        claim(tmp_path)
    release(claim(tmp_path))


def test_ranks_recognize_the_folder_of_their_launcher(tmp_path, monkeypatch):
    ours = claim(tmp_path)
    assert not is_ours(tmp_path)
    monkeypatch.setenv(TOKEN_VARIABLE, ours.owner.token)
    assert is_ours(tmp_path)
    assert not is_ours(tmp_path / "other")
    release(ours)
    assert not is_ours(tmp_path)


def test_place_that_cannot_be_written_is_explained(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"file/run cannot be written \(Not a directory\)"):
        claim(Path(tmp_path / "file" / "run"))


def test_job_of_a_chain_outlasts_a_killed_one_of_another_machine(tmp_path):
    killed = replace(Owner.this(), machine="elsewhere", job="6")
    (tmp_path / OWNER).mkdir()
    record = tmp_path / OWNER / "1"
    record.write_text(json.dumps(asdict(killed)))
    refreshed = time.time() - STALE_SECONDS + 1.5
    os.utime(record, (refreshed, refreshed))
    asking = Owner.this()
    assert is_alive(tmp_path, 1, killed, asking)
    outlast(tmp_path, "7")
    assert not is_alive(tmp_path, 1, killed, asking)
    outlast(tmp_path, "7")  # nobody is left to wait for


def test_job_does_not_wait_for_itself_or_for_one_that_lives(tmp_path):
    (tmp_path / OWNER).mkdir()
    record = tmp_path / OWNER / "1"
    for job in ("7", None, "6"):
        alive = replace(Owner.this(), machine="elsewhere", job=job)
        record.write_text(json.dumps(asdict(alive)))
        outlast(tmp_path, "7", patience=0.1)
        assert is_alive(tmp_path, 1, alive, Owner.this())
