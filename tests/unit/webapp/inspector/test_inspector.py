"""The process of a model: kept, replaced, killed, late, at its end; with quick programs.

What a model answers is in tests/functional/test_token_inspector.py.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from moe_megatron.errors import BackendUnavailableError, DataError
from moe_megatron.webapp.inspector.inspector import MOST_CHARACTERS, Inspector, Patience

PROGRAM = """
import json, os, signal, sys, time
for line in sys.stdin:
    text = json.loads(line)
    if text == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if text == "leave":
        sys.exit(3)
    if text == "wait":
        time.sleep(600)
    if text == "error":
        print(json.dumps({"error": f"{sys.argv[1]}/a.bin and {sys.argv[1]} are damaged."}))
    elif text == "nonsense":
        print("[1]")
    else:
        print(json.dumps({"tokens": [text], "pid": os.getpid(), "folder": sys.argv[1]}))
    sys.stdout.flush()
"""


def command(folder: Path) -> list[str]:
    return [sys.executable, "-c", PROGRAM, str(folder)]


@pytest.fixture
def make() -> Iterator[Callable[..., Inspector]]:
    made = []

    def one(**patience: Any) -> Inspector:
        made.append(Inspector(command, Patience(**patience)))
        return made[-1]

    yield one
    for inspector in made:
        inspector.close()


def is_there(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def wait_for(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_model_is_kept_and_the_next_one_takes_its_place(make, tmp_path: Path) -> None:
    inspector = make()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = inspector.ask(tmp_path / "a", "one\n\u2603<b>")
    assert first["tokens"] == ["one\n\u2603<b>"]
    assert inspector.ask(tmp_path / "a", "two")["pid"] == first["pid"]
    second = inspector.ask(tmp_path / "b", "three")
    assert second["folder"] == str(tmp_path / "b")
    assert not is_there(first["pid"])
    # A checkpoint that was saved again is another one.
    os.utime(tmp_path / "b", (1e9, 1e9))
    third = inspector.ask(tmp_path / "b", "four")
    assert third["pid"] != second["pid"]
    inspector.close()
    assert not is_there(third["pid"])
    with pytest.raises(BackendUnavailableError, match="the dashboard is ending"):
        inspector.ask(tmp_path / "b", "five")


def test_it_stands_back_behind_a_training(make, tmp_path: Path) -> None:
    process = psutil.Process(make().ask(tmp_path, "one")["pid"])
    assert process.nice() == max(10, psutil.Process().nice())
    assert process.environ()["CUDA_VISIBLE_DEVICES"] == ""
    assert Path(f"/proc/{process.pid}/oom_score_adj").read_text() == "1000\n"


def test_a_killed_process_is_started_again(make, tmp_path: Path) -> None:
    inspector = make()
    first = inspector.ask(tmp_path, "one")["pid"]
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: not is_there(first))
    second = inspector.ask(tmp_path, "two")["pid"]
    assert second != first
    for text, said in (
        ("die", "was killed, usually by the system for want of memory; ask again"),
        ("leave", "ended with code 3; ask again"),
        ("nonsense", "answered nonsense; ask again"),
    ):
        with pytest.raises(BackendUnavailableError, match=said):
            inspector.ask(tmp_path, text)
        assert inspector.ask(tmp_path, "again")["tokens"] == ["again"]


def test_one_that_is_late_is_ended(make, tmp_path: Path) -> None:
    inspector = make(answering=0.2)
    pid = inspector.ask(tmp_path, "one")["pid"]
    with pytest.raises(BackendUnavailableError, match="not answered within 0 seconds and was"):
        inspector.ask(tmp_path, "wait")
    assert not is_there(pid)
    assert inspector.ask(tmp_path, "two")["tokens"] == ["two"]


def test_one_that_nobody_asks_is_ended(make, tmp_path: Path) -> None:
    inspector = make(idle=0.1)
    pid = inspector.ask(tmp_path, "one")["pid"]
    wait_for(lambda: not is_there(pid))
    assert inspector.process is None
    assert inspector.ask(tmp_path, "two")["tokens"] == ["two"]


def test_few_may_wait_and_the_end_lets_all_go(make, tmp_path: Path) -> None:
    inspector = make(waiting=2)
    said: list[str] = []

    def ask() -> None:
        try:
            inspector.ask(tmp_path, "wait")
        except BackendUnavailableError as error:
            said.append(str(error))

    waiting = [threading.Thread(target=ask) for _ in range(2)]
    for thread in waiting:
        thread.start()
    wait_for(lambda: inspector.process is not None and not inspector._waiting._value)
    with pytest.raises(BackendUnavailableError, match="busy with texts of others"):
        inspector.ask(tmp_path, "one")
    pid = inspector.process.pid
    inspector.close()
    for thread in waiting:
        thread.join(20)
    assert len(said) == 2
    assert not is_there(pid)
    assert inspector.process is None


@pytest.mark.parametrize("text", ["", "x" * (MOST_CHARACTERS + 1)])
def test_texts_of_no_length_start_nothing(make, tmp_path: Path, text: str) -> None:
    inspector = make()
    with pytest.raises(DataError, match=f"1 to {MOST_CHARACTERS:,} characters, and this has"):
        inspector.ask(tmp_path, text)
    assert inspector.process is None
