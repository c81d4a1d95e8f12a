"""The fork that writes a checkpoint: its results come back, and it ends with its rank."""

import argparse
import multiprocessing
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.training import checkpointing

from moe_megatron.mcore.state.background import _Results, saving_in_a_fork

LARGE = {0: ["result" * 10] * 50_000}
"""More than a pipe holds."""

RANK = """
import multiprocessing, os, time
from moe_megatron.mcore.state.background import _tied
def write():
    print(os.getpid(), flush=True)
    time.sleep(600)
multiprocessing.get_context("fork").Process(target=_tied, args=(os.getpid(), write)).start()
time.sleep(600)
"""


def test_large_results_of_a_fork_come_back() -> None:
    results = _Results()
    fork = multiprocessing.get_context("fork").Process(target=results.put, args=[LARGE])
    fork.start()
    fork.join(60)
    assert fork.exitcode == 0
    assert results.get_nowait() == LARGE
    results.close()


def test_fork_ends_with_a_rank_that_is_killed(tmp_path: Path) -> None:
    rank = subprocess.Popen([sys.executable, "-c", RANK], stdout=subprocess.PIPE)
    assert rank.stdout is not None
    fork = psutil.Process(int(rank.stdout.readline()))
    rank.send_signal(signal.SIGKILL)
    rank.wait()
    deadline = time.monotonic() + 30
    while fork.is_running() and fork.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_megatron_is_as_before_afterwards() -> None:
    before = checkpointing.schedule_async_save
    with saving_in_a_fork(argparse.Namespace(use_persistent_ckpt_worker=True)):
        assert checkpointing.schedule_async_save is not before
    assert checkpointing.schedule_async_save is before
    assert filesystem_async._results_queue is None
