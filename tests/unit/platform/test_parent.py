"""Ranks, and what they fork, end with a launcher that is killed."""

import os
import signal
import subprocess
import sys
import time

import pytest

RANK = """
import os, sys, time
from moe_megatron.platform import parent
if sys.argv[1] == "watch":
    parent._ask_kernel = lambda: None
parent.end_with_launcher()
forked = os.fork()
if forked == 0:
    time.sleep(100)
print(os.getpid(), forked, flush=True)
time.sleep(100)
"""
LAUNCHER = """
import os, subprocess, sys, time
from moe_megatron.platform.processes import Process
from moe_megatron.platform.parent import LAUNCHER_VARIABLE
if sys.argv[2] == "ours":
    os.environ[LAUNCHER_VARIABLE] = str(Process.this())
else:
    os.environ["TORCHELASTIC_RUN_ID"] = "none"
subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[3]])
time.sleep(100)
"""


def gone(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


@pytest.mark.parametrize(
    ("launcher", "means", "forks_end"),
    [("ours", "kernel", True), ("torchrun", "kernel", True), ("ours", "watch", False)],
)
def test_rank_ends_when_its_launcher_is_killed(launcher, means, forks_end):
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, RANK, launcher, means], stdout=subprocess.PIPE, text=True
    ) as process:
        rank, forked = map(int, process.stdout.readline().split())
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    waited = [rank, forked] if forks_end else [rank]
    try:
        while not all(map(gone, waited)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        for pid in (rank, forked):
            if not gone(pid):
                os.kill(pid, signal.SIGKILL)


LATE = """
import os, time
from moe_megatron.platform.parent import end_with_parent
parent = os.getpid()
if os.fork() == 0:
    while os.getppid() == parent:
        time.sleep(0.01)
    print("asks", flush=True)
    end_with_parent(parent)
    print("goes on", flush=True)
os._exit(0)
"""


def test_process_whose_parent_ended_before_it_asked_ends():
    answer = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True)
    assert answer.stdout == "asks\n"


def test_process_without_a_launcher_outlives_its_parent():
    code = (
        "from moe_megatron.platform import parent; parent.end_with_launcher(); print(parent._armed)"
    )
    variables = ("TORCHELASTIC_RUN_ID", "MOE_MEGATRON_LAUNCHER")
    environment = {name: value for name, value in os.environ.items() if name not in variables}
    answer = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert answer.stdout == "False\n"
