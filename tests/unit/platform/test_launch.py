"""Starting and stopping workers; each case is a small program, since signals belong to one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moe_megatron.platform.launch import _orders_again, torchrun_command
from moe_megatron.testing.programs import interruptible

ROOT = Path(__file__).parents[3]

LAUNCHER = """
import sys
from pathlib import Path
from moe_megatron.platform.launch import run_torchrun, torchrun_command
try:
    end = run_torchrun(torchrun_command(2, sys.argv[2:]), Path(sys.argv[1]))
except KeyboardInterrupt:
    print("interrupted", flush=True)
for death in end.deaths:
    print(death.explain(end.memory_kills), flush=True)
print("CODE", end.code, flush=True)
"""
ENDS = "import sys, os; sys.exit(int(sys.argv[1]) if os.environ['RANK'] == '1' else 0)"
PEACEFUL = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("saving", flush=True), sys.exit(0)))
print("ready", flush=True)
while True:
    time.sleep(0.01)  # a signal that came just before a sleep is answered after it
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: print("saving", flush=True))
print("ready", flush=True)
while True:
    time.sleep(0.01)
"""
KILLED = """
import os, signal, sys, time
from moe_megatron.platform.death import note_failure
there = sys.argv[1]
if os.environ["RANK"] == "1":
    open(there, "w").close()
    os.kill(os.getpid(), signal.SIGKILL)
while not os.path.exists(there):
    time.sleep(0.05)
time.sleep(0.2)
note_failure(RuntimeError("Connection closed by peer [127.0.0.1]:1"))
sys.exit(1)
"""
FAILS_SLOWLY = """
import os, sys, time
from moe_megatron.platform.death import note_failure
there = sys.argv[1]
if os.environ["RANK"] == "1":
    note_failure(ValueError("the first cause"))
    open(there, "w").close()
    time.sleep(100)
else:
    while not os.path.exists(there):
        time.sleep(0.05)
    note_failure(RuntimeError("Connection reset by peer"))
sys.exit(1)
"""
UNPREPARED = """
import time
print("ready", flush=True)
while True:
    time.sleep(0.01)
"""


@pytest.fixture
def launch(tmp_path):
    """Starts two workers of a script; returns the launcher and a function that waits for words."""
    started = []

    def run(script, *words):
        path, log = tmp_path / "worker.py", tmp_path / "output.txt"
        path.write_text(script)
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-c", LAUNCHER, tmp_path / "scratch", path, *words],
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                preexec_fn=interruptible,
            )
        started.append(process)

        def wait_for(text, times=1):
            deadline = time.monotonic() + 120
            while log.read_text().count(text) < times:
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.02)
            return log.read_text()

        return process, wait_for

    yield run
    for process in started:
        process.kill()
        process.wait()


def test_command_is_of_one_machine_with_a_free_port():
    command = torchrun_command(3, ["train.py", "--x"])
    assert command[:4] == ["--nproc-per-node", "3", "--master-addr", "127.0.0.1"]
    assert 1024 <= int(command[5]) < 65536
    assert command[6:] == ["train.py", "--x"]


@pytest.mark.slow
@pytest.mark.parametrize("code", [pytest.param(0, marks=pytest.mark.deep), 3])
def test_exit_code_is_that_of_the_worker_that_failed(code, launch):
    process, wait_for = launch(ENDS, str(code))
    output = wait_for(f"CODE {code}\n")
    assert process.wait(60) == 0
    assert "Traceback" not in output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "code", "cause"),
    [
        (KILLED, 137, "rank 1 was killed by signal 9 (SIGKILL), "),
        pytest.param(
            *(FAILS_SLOWLY, 1, "rank 1 failed with ValueError: the first cause\n"),
            marks=pytest.mark.deep,
        ),
    ],
)
def test_rank_that_died_first_is_named(script, code, cause, launch, tmp_path):
    _, wait_for = launch(script, tmp_path / "there")
    assert wait_for(f"CODE {code}\n").startswith(cause)


@pytest.mark.slow
@pytest.mark.parametrize(
    "signum",
    # tests/functional/test_command_line.py has Ctrl-C.
    [
        signal.SIGTERM,
        *(pytest.param(it, marks=pytest.mark.deep) for it in (signal.SIGINT, signal.SIGUSR1)),
    ],
)
def test_stop_lets_workers_end_by_themselves(signum, launch):
    process, wait_for = launch(PEACEFUL)
    wait_for("ready", times=2)
    process.send_signal(signum)
    output = wait_for("CODE 0\n")
    assert output.count("stopping after this step ...") == 1
    assert output.count("saving") == 2


@pytest.mark.slow
def test_second_stop_kills_the_workers(launch):
    process, wait_for = launch(STUBBORN)
    wait_for("ready", times=2)
    process.send_signal(signal.SIGUSR1)
    wait_for("saving", times=2)
    process.send_signal(signal.SIGTERM)  # of a batch system, whose time is up: they go on saving
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    output = wait_for("CODE 130\n")
    assert "stopping now" in output
    assert "nothing was saved" not in output


@pytest.mark.slow
def test_stop_of_workers_that_cannot_save_yet_says_so(launch):
    process, wait_for = launch(UNPREPARED)
    wait_for("ready", times=2)
    process.send_signal(signal.SIGINT)
    output = wait_for("CODE 130\n")
    assert "interrupted before the first step: nothing was saved" in output


@pytest.mark.parametrize(
    ("stops", "seconds", "again"),
    [
        ([signal.SIGTERM, signal.SIGTERM], 2.1, True),
        ([signal.SIGTERM, signal.SIGTERM, signal.SIGTERM], 60.0, True),
        ([signal.SIGTERM, signal.SIGTERM], 0.1, False),  # `timeout` sends it twice
        ([signal.SIGUSR1, signal.SIGTERM], 60.0, False),  # announced, and now ordered
        ([signal.SIGINT, signal.SIGTERM], 60.0, False),
        ([signal.SIGTERM, signal.SIGUSR1], 60.0, False),
    ],
)
def test_a_second_sigterm_is_an_order_again(stops, seconds, again, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert _orders_again(stops, seconds) is again
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert _orders_again(stops, seconds) is False


def test_a_second_sigterm_kills_workers_that_go_on():
    code = (
        "import os, signal, subprocess\n"
        "from moe_megatron.platform import launch\n"
        "launch._TWICE_SECONDS = -1.0\n"
        "words = ['sh', '-c', 'trap \"\" TERM; echo ready; exec sleep 100']\n"
        "worker = subprocess.Popen(words, stdout=subprocess.PIPE)\n"
        "worker.stdout.readline()\n"
        "with launch._stops_passed_on():\n"
        "    for _ in range(2):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "print(worker.wait())\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "SLURM_JOB_ID"}
    answer = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout == "-9\n"
    assert "stopping after this step ..." in answer.stderr
    assert "stopping now" in answer.stderr


def test_stop_before_there_are_workers_is_a_keyboard_interrupt():
    code = (
        "import os, signal\n"
        "from moe_megatron.platform.launch import _stops_passed_on\n"
        "try:\n"
        "    with _stops_passed_on() as stops:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', stops)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert answer.stdout == "interrupted []\n"
