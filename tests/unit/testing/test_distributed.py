"""Functions on ranks: what comes back, and what is said when a rank fails, dies or hangs."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from moe_megatron.testing.distributed import (
    NO_LAUNCHER,
    RankError,
    run_distributed,
    start_ranks,
)

pytestmark = pytest.mark.distributed


# --- what the ranks do ---------------------------------------------------------------------------


def world(word: str, number: int) -> tuple[str, int, dict[str, str]]:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "CUDA_VISIBLE_DEVICES", "OWN")
    return word, number, {name: os.environ.get(name, "unset") for name in names}


def sum_over_ranks(number: int) -> int:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    tensor = torch.tensor(number + dist.get_rank())
    dist.all_reduce(tensor)
    dist.destroy_process_group()
    return int(tensor)


def surroundings() -> dict[str, object]:
    import numpy as np

    left = os.environ.get("LEFT_BEHIND", "nothing")
    os.environ["LEFT_BEHIND"] = "something"
    return {
        "process": os.getpid(),
        "parent": os.getppid(),
        "folder": os.getcwd(),
        "drawn": np.random.random(),
        "input": sys.stdin.read(),
        "torch": "torch" in sys.modules,
        "left": left,
    }


def leave(how: str) -> None:
    if os.environ["RANK"] == "0":
        print("waiting for the other", flush=True)
        time.sleep(100)
    if how == "raise":
        raise ValueError("this rank cannot go on")
    if how == "exit":
        sys.exit(3)
    os.kill(os.getpid(), signal.SIGKILL)


def leave_in_words() -> None:
    sys.exit("no data")


def leave_early() -> None:
    sys.exit(0)


def hang_with_a_child() -> None:
    child = subprocess.Popen(["sleep", "100"])
    print("child", child.pid, "of", os.getpid(), flush=True)
    time.sleep(100)


def return_and_leave_a_child() -> int:
    return subprocess.Popen(["sleep", "100"]).pid


def wait_for_ctrl_c() -> None:
    print("ready", flush=True)
    while True:
        time.sleep(0.01)  # a signal that came just before a sleep is answered after it


# --- results -------------------------------------------------------------------------------------


def test_every_rank_returns_what_it_found_in_the_order_of_ranks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OWN", "from the test")
    for rank, answer in enumerate(run_distributed(world, "hello", 7, world_size=3)):
        assert answer == (
            "hello",
            7,
            {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "3",
                "MASTER_ADDR": "127.0.0.1",
                "CUDA_VISIBLE_DEVICES": "",
                "OWN": "from the test",
            },
        )


def test_environment_is_that_of_the_call_and_may_name_the_rank() -> None:
    answers = run_distributed(world, "", 0, environment={"OWN": "rank {rank}"})
    assert [found["OWN"] for _, _, found in answers] == ["rank 0", "rank 1"]
    assert run_distributed(world, "", 0, world_size=1)[0][2]["OWN"] == "unset"
    ((_, _, alone),) = run_distributed(world, "", 0, world_size=1, environment=NO_LAUNCHER)
    assert set(alone.values()) == {"unset", ""}


def test_ranks_meet_over_gloo() -> None:
    assert run_distributed(sum_over_ranks, 10) == [21, 21]


def test_forked_ranks_share_nothing_that_interpreters_would_not(tmp_path: Path) -> None:
    first, second = run_distributed(surroundings, directory=tmp_path)
    assert len({first["process"], second["process"], first["parent"], os.getpid()}) == 4
    assert first["folder"] == second["folder"] == str(tmp_path)
    assert first["drawn"] != second["drawn"]
    assert first["input"] == ""
    assert first["torch"] is True
    assert run_distributed(surroundings, world_size=1)[0]["left"] == "nothing"


def test_fresh_ranks_are_interpreters_that_imported_nothing(tmp_path: Path) -> None:
    (answer,) = run_distributed(surroundings, world_size=1, directory=tmp_path, fresh=True)
    assert answer["torch"] is False
    assert answer["parent"] == os.getpid()
    assert answer["folder"] == str(tmp_path)


def test_function_that_no_rank_could_import_is_refused() -> None:
    def inner() -> None:
        pass

    for function in (inner, lambda: 1):
        with pytest.raises(TypeError, match=r"cannot be imported by name, .*top level of a module"):
            run_distributed(function)


# --- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raise", "rank 1 ended with code 1:"),
        ("exit", "rank 1 ended with code 3:"),
        ("kill", "rank 1 was killed by SIGKILL:"),
    ],
)
@pytest.mark.parametrize("fresh", [False, True], ids=["forked", "fresh"])
def test_rank_that_fails_is_said_first_and_the_others_are_ended(
    how: str, said: str, fresh: bool
) -> None:
    with start_ranks(leave, how, fresh=fresh) as ranks:
        ranks.wait_for("waiting for the other")
        ends = ranks.wait(grace=0.1)
        assert ranks.running() == []
    message = str(RankError(ends))
    assert message.startswith(said)
    assert ("ValueError: this rank cannot go on" in message) == (how == "raise")
    assert "rank 0 was still running and was killed:\nwaiting for the other" in message


def test_failure_of_all_holds_what_they_wrote() -> None:
    with pytest.raises(RankError, match=r"rank 0 ended with code 1:\nno data\n\nrank 1") as caught:
        run_distributed(leave_in_words)
    assert [end.exit_code for end in caught.value.ends] == [1, 1]


def test_rank_that_leaves_well_before_its_end_has_failed() -> None:
    with pytest.raises(RankError, match="rank 0 ended before its function returned"):
        run_distributed(leave_early, world_size=1)


def test_ranks_that_take_too_long_are_killed_with_their_children(
    wait_until_gone: Callable[..., None],
) -> None:
    with pytest.raises(RankError, match=r"not all had ended after 1\.5 s") as caught:
        run_distributed(hang_with_a_child, timeout=1.5)
    pids = [int(word) for end in caught.value.ends for word in end.output.split() if word.isdigit()]
    assert len(pids) == 4
    wait_until_gone(*pids)


def test_children_that_a_rank_leaves_behind_end_with_it(
    wait_until_gone: Callable[..., None],
) -> None:
    wait_until_gone(*run_distributed(return_and_leave_a_child, world_size=1))


def test_output_that_never_comes_is_an_error() -> None:
    said = r"rank 0 did not write 'steady'\nrank 0 was still running and was killed:\nready"
    with start_ranks(wait_for_ctrl_c, world_size=1) as ranks:
        ranks.wait_for("ready")
        with pytest.raises(RankError, match=said):
            ranks.wait_for("steady", seconds=0.1)


def test_ctrl_c_reaches_ranks_wherever_the_tests_run() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as under nohup
    try:
        with start_ranks(wait_for_ctrl_c) as ranks:
            for rank in (0, 1):
                ranks.wait_for("ready", rank=rank)
            ranks.send_signal(signal.SIGINT)
            ends = ranks.wait(60)
    finally:
        signal.signal(signal.SIGINT, before)
    assert [end for end in ends if "KeyboardInterrupt" not in end.output] == []
