"""Which death came first, and what is said about it."""

import json
import threading
import time
from pathlib import Path

import pytest

from moe_megatron.platform.death import (
    ERROR_FILE_VARIABLE,
    Death,
    in_order,
    is_lost_peer,
    note_failure,
)


@pytest.mark.parametrize(
    ("death", "kills", "text"),
    [
        (
            Death(rank=1, exit_code=-9),
            None,
            "rank 1 was killed by signal 9 (SIGKILL), often for want of memory",
        ),
        (
            Death(rank=1, exit_code=-9),
            1,
            "rank 1 was killed by signal 9 (SIGKILL), by the kernel for want of memory",
        ),
        (
            Death(rank=1, exit_code=-9),
            0,
            "rank 1 was killed by signal 9 (SIGKILL), by another process: the kernel has counted "
            "no kill for want of memory",
        ),
        (Death(rank=0, exit_code=-11), 0, "rank 0 was killed by signal 11 (SIGSEGV)"),
        (Death(rank=0, exit_code=3), 0, "rank 0 ended with exit code 3"),
        (
            Death(rank=2, exit_code=1, message="KeyError: 'x'"),
            0,
            "rank 2 failed with KeyError: 'x'",
        ),
    ],
)
def test_explanation(death, kills, text):
    assert death.explain(kills) == text


def noted(monkeypatch, folder, rank, error):
    file = folder / f"error{rank}.json"
    monkeypatch.setenv(ERROR_FILE_VARIABLE, str(file))
    monkeypatch.setenv("RANK", str(rank))
    note_failure(error)
    return file


def test_order_is_by_time_and_those_that_lost_their_peer_come_last(monkeypatch, tmp_path):
    lost = noted(monkeypatch, tmp_path, 0, RuntimeError("Connection closed by peer"))
    failed = noted(monkeypatch, tmp_path, 3, ValueError("x"))
    ended_by_torchrun = Death(rank=1, exit_code=-9, time=time.time() + 10)
    found = [Death(rank=0, exit_code=1, time=9.0), ended_by_torchrun]
    # A rank that has noted its failure and not left by itself counts as well.
    assert [death.rank for death in in_order(found, [lost, failed])] == [3, 1, 0]
    killed = Death(rank=2, exit_code=-9, time=time.time() - 10)
    assert [death.rank for death in in_order([*found, killed], [lost, failed])] == [2, 3, 1, 0]


def test_torchrun_understands_the_note(monkeypatch, tmp_path):
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    file = noted(monkeypatch, tmp_path, 3, ValueError("a\n  b"))
    failure = ProcessFailure(local_rank=3, pid=1, exitcode=1, error_file=str(file))
    assert failure.message == "ValueError: a b"
    assert failure.timestamp == int(json.loads(file.read_text())["time"])


def test_note_without_a_launcher_or_place_is_left_out(monkeypatch, tmp_path):
    monkeypatch.delenv(ERROR_FILE_VARIABLE, raising=False)
    note_failure(ValueError("x"))
    monkeypatch.setenv(ERROR_FILE_VARIABLE, str(tmp_path / "no" / "error.json"))
    note_failure(ValueError("x"))
    (tmp_path / "garbage.json").write_text("{")
    assert in_order([Death(rank=1, exit_code=4)], [tmp_path / "garbage.json"]) == [
        Death(rank=1, exit_code=4)
    ]


def test_lost_connections_are_told_from_faults():
    assert is_lost_peer(ConnectionResetError())
    assert is_lost_peer(RuntimeError("[gloo/pair.cc] Connection closed by peer [127.0.0.1]:9"))
    assert not is_lost_peer(RuntimeError("CUDA out of memory"))
    assert not is_lost_peer(ValueError("connection closed by peer"))


def test_who_looks_at_any_time_finds_a_whole_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torchrun does, which fails if what it finds is no JSON."""
    path = tmp_path / "error.json"
    monkeypatch.setenv(ERROR_FILE_VARIABLE, str(path))
    note_failure(ValueError("x"))
    over = threading.Event()

    def write() -> None:
        for _ in range(500):
            note_failure(ValueError("x" * 200))
        over.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not over.is_set():
        assert json.loads(path.read_text())["rank"] == 0
    writer.join()
    assert [found.name for found in tmp_path.iterdir()] == ["error.json"]
