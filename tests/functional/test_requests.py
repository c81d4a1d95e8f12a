"""A run that is asked for checkpoints and to stop, by files in its folder.

All ranks save after the same step, and the losses are those of a run that nobody asked.
"""

import time
from pathlib import Path
from typing import Any

import pytest

from moe_megatron.config import apply_overrides, load_config
from moe_megatron.config.checkpoint_files import CHECKPOINTS, folders_by_step
from moe_megatron.config.flags import split_flags
from moe_megatron.errors import AGAIN
from moe_megatron.mcore import world
from moe_megatron.mcore.loop.callbacks import Callback
from moe_megatron.platform.requests import ASKED, Request, ask
from moe_megatron.telemetry.journal import read_events
from moe_megatron.testing.distributed import run_distributed
from moe_megatron.testing.jobs import few_steps, step_records

pytestmark = [pytest.mark.deep, pytest.mark.distributed]

STEPS = 6
SETTINGS: dict[str, Any] = {
    **few_steps(STEPS),
    "training.eval_interval": None,
    "checkpoint.save_interval": 5,
    "telemetry.history": False,
    "telemetry.console": False,
    **split_flags(["--mock-data"]),
}


class Asks(Callback):
    """Asks at the beginning of some steps, and waits until the run has heard it."""

    def __init__(self, run_dir: Path, requests: dict[int, Request]) -> None:
        self.run_dir, self.requests = run_dir, requests
        self.saves: list[int] = []

    def on_step_start(self, step: int) -> None:
        if step in self.requests and world.rank() == 0:
            before = asked(self.run_dir)
            ask(self.run_dir, self.requests[step])
            deadline = time.monotonic() + 20
            while asked(self.run_dir) == before and time.monotonic() < deadline:
                time.sleep(0.01)

    def on_checkpoint_start(self, step: int) -> None:
        self.saves.append(step)


def asked(run_dir: Path) -> list[Any]:
    return [it.fields for it in read_events(run_dir) if it.kind == "asked"]


RUNS: dict[str, dict[int, Request]] = {
    "unasked": {},
    "asked": {2: "checkpoint", 3: "checkpoint", 5: "checkpoint", 6: "checkpoint"},
    "stopped": {2: "checkpoint", 4: "stop"},
}


def train(folder: Path) -> dict[str, Any]:
    from moe_megatron.run.prepared_data import PreparedData
    from moe_megatron.run.start import Attachments, start

    world.join("gloo")
    data = PreparedData(paths=(), cache=folder / "data", vocab_size=512, end_of_document=0)
    ends = {}
    for name, requests in RUNS.items():
        run_dir = folder / name
        if world.rank() == 0:  # of a run that was killed before it could take it up
            (run_dir / ASKED).mkdir(parents=True)
            (run_dir / ASKED / "stop").touch()
        world.wait_for_all()
        config = apply_overrides(load_config("test_tiny"), {**SETTINGS, "run_dir": str(run_dir)})
        asks = Asks(run_dir, requests)
        result = start(config, data=data, attached=Attachments(callbacks=[asks]))
        ends[name] = (result.exit_code, result.outcome.steps, asks.saves)
    world.leave()
    return ends


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("requests")


@pytest.fixture(scope="module")
def ends(folder: Path) -> list[dict[str, Any]]:
    return run_distributed(train, folder, world_size=2, timeout=180)


def test_all_ranks_save_after_the_step_in_which_it_was_asked(ends, folder: Path) -> None:
    first, second = ends
    assert first == second
    assert first["unasked"] == (0, STEPS, [5, STEPS])
    # Once also where the interval, or the end of the run, saves anyway.
    assert first["asked"] == (0, STEPS, [2, 3, 5, STEPS])
    assert sorted(folders_by_step(folder / "asked" / CHECKPOINTS)) == [2, 3, 5, STEPS]
    assert asked(folder / "asked") == [{"what": "checkpoint"}] * 4


def test_a_run_that_is_asked_to_stop_saves_and_says_that_it_can_go_on(ends, folder: Path) -> None:
    assert ends[0]["stopped"] == ends[1]["stopped"] == (AGAIN, 4, [2, 4])
    assert asked(folder / "stopped") == [{"what": "checkpoint"}, {"what": "stop"}]


def test_a_request_changes_no_loss(ends, folder: Path) -> None:
    def losses(name: str) -> list[Any]:
        return [(it.step, it.loss, it.grad_norm) for it in step_records(folder / name)]

    assert len(losses("unasked")) == STEPS
    assert losses("asked") == losses("unasked")
    assert losses("stopped") == losses("unasked")[:4]


def test_nobody_listens_afterwards(ends, folder: Path) -> None:
    for name in RUNS:
        assert not (folder / name / ASKED).exists()
        with pytest.raises(FileNotFoundError):
            ask(folder / name, "checkpoint")
