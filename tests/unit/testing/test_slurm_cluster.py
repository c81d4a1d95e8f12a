"""A cluster leaves nothing behind, whatever its jobs do."""

import time

import psutil
import pytest

from moe_megatron.testing.slurm_cluster import SlurmCluster, why_not


@pytest.mark.deep  # test_slurm_jobs.py uses it
@pytest.mark.distributed
def test_cluster_leaves_nothing_behind(tmp_path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/bash\ntrap '' TERM\necho $$ > pid\nwhile :; do sleep 0.2; done\n")
    with SlurmCluster(nodes=1) as cluster:
        cluster.submit(script, cwd=tmp_path)
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
            time.sleep(0.05)
    assert not cluster.folder.exists()
    deadline = time.monotonic() + 10
    while left := [p for p in psutil.process_iter() if belongs(p, str(cluster.folder))]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def belongs(process: psutil.Process, folder: str) -> bool:
    """By its environment, or by a socket in the cluster's folder, where it has hidden that."""
    try:
        sockets = [str(own.laddr) for own in process.net_connections("unix")]
        return any(folder in text for text in (process.environ().get("SLURM_CONF", ""), *sockets))
    except psutil.Error:
        return False


def test_machine_without_slurm_is_told_the_command(monkeypatch) -> None:
    monkeypatch.setattr("shutil.which", lambda program, **_: None)
    assert "apt-get install -y --no-install-recommends slurm-wlm munge" in str(why_not())
