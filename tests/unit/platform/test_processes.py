"""Processes keep their identity when their ids are used again."""

import subprocess
import sys
from dataclasses import replace

from moe_megatron.platform.processes import Process, machine


def test_this_process_is_alive_and_survives_being_written():
    this = Process.this()
    assert this.is_alive
    assert Process.read(str(this)) == this
    assert machine() == machine()


def test_another_process_with_the_same_id_is_not_the_same():
    this = Process.this()
    assert not replace(this, started=this.started - 1).is_alive


def test_process_that_has_ended_is_dead_before_anybody_has_waited_for_it():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = Process.of(child.pid)
    assert process.is_alive
    child.stdin.close()
    while process.is_alive:
        pass
    assert Process.of(child.pid) is None
    child.wait()


def test_other_text_is_no_process():
    assert [Process.read(text) for text in ("", "7", "7-", "a-b", "7-8")] == [
        *[None] * 4,
        Process(7, 8),
    ]
