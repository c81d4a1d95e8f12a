"""What a person sees below the cells of a notebook, from a kernel that a client of Jupyter asks."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.connect import write_connection_file

from moe_megatron.testing.distributed import NO_LAUNCHER, start_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]

PREPARE = """
import os, pathlib, signal, threading
import moe_megatron.live.bar
from moe_megatron import MoEModel, MoETrainer

moe_megatron.live.bar.PATIENCE_SECONDS = 0.0
shape = dict(hidden_size=64, num_attention_heads=4, expert_hidden_size=64)
model = MoEModel(num_experts=4, num_layers=2, **shape)
trainer = MoETrainer(model, run_dir="runs/notebook")
texts = [f"{n} words in {pathlib.Path.cwd()}" for n in range(99)]
few = dict(batch_size=4, sequence_length=32, max_steps=6)
"""
TRAIN = "result = trainer.train(texts, texts[:9], **few)"
INTERRUPT = """
trainer = MoETrainer(model, run_dir="runs/lines", overrides={"telemetry.plain_console": True})
threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT]).start()
result = trainer.train(texts, **{**few, "max_steps": 10**6, "num_epochs": 10**6})
assert result.interrupted
"""
PROCESSES = """
from moe_megatron.distributed import DistributedMoETrainer
trainer = DistributedMoETrainer(model, 2, expert_parallel_size=2, run_dir="runs/processes")
result = trainer.train(texts, **few)
"""
TOLD = ("the routers of layer ", "max_steps (1,000,000) ends ", "stopping after this step")
"""What a training may say to its person."""


def be_a_kernel(connection: str) -> None:
    """The kernel of a notebook; Megatron is loaded already, which saves the test ten seconds."""
    from ipykernel.kernelapp import IPKernelApp

    kernel = IPKernelApp.instance()
    kernel.initialize(["-f", connection])
    kernel.start()


@dataclass
class Cell:
    """What came of a cell."""

    text: str = ""
    """Its streams, stdout and stderr."""
    displayed: list[dict[str, Any]] = field(default_factory=list)
    """New outputs."""
    updated: list[dict[str, Any]] = field(default_factory=list)
    """Outputs that were replaced where they stand."""
    errors: list[str] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        """Of the streams, those that are not for the person who trains."""
        return [line for line in self.text.splitlines() if not line.startswith(TOLD)]

    def seen(self, output: dict[str, Any]) -> str:
        """What is left of an output after all updates."""
        name = output["transient"]["display_id"]
        same = [it for it in self.updated if it["transient"]["display_id"] == name]
        return str([output, *same][-1]["data"]["text/plain"])


class Notebook:
    def __init__(self, connection: str) -> None:
        self.client = BlockingKernelClient(connection_file=connection)
        self.client.load_connection_file()
        self.client.hb_channel.time_to_dead = 60.0  # a busy machine misses a second's heartbeat
        self.client.start_channels()
        self.client.wait_for_ready(timeout=120)

    def run(self, code: str) -> Cell:
        """Run a cell."""
        cell, question = Cell(), self.client.execute(code)
        while True:
            message = self.client.get_iopub_msg(timeout=120)
            kind, content = message["msg_type"], message["content"]
            if message["parent_header"].get("msg_id") != question:
                continue
            if kind == "stream":
                cell.text += content["text"]
            elif kind in ("display_data", "execute_result"):
                cell.displayed.append(content)
            elif kind == "update_display_data":
                cell.updated.append(content)
            elif kind == "error":
                cell.errors.append(f"{content['ename']}: {content['evalue']}")
            elif kind == "status" and content["execution_state"] == "idle":
                return cell


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    place = tmp_path_factory.mktemp("notebook")
    connection, _ = write_connection_file(str(place / "kernel.json"), ip="127.0.0.1")
    # As in a kernel that Jupyter has started; with pytest's variable it would behave differently.
    environment = {**NO_LAUNCHER, "PYTEST_CURRENT_TEST": None, "FORCE_COLOR": "1"}
    with start_ranks(
        be_a_kernel, connection, world_size=1, directory=place, environment=environment
    ):
        notebook = Notebook(connection)
        assert notebook.run(PREPARE) == Cell()
        yield notebook
        notebook.client.shutdown()
        notebook.client.stop_channels()


def test_training_is_shown_by_outputs_that_are_drawn_anew(notebook: Notebook) -> None:
    cell = notebook.run(TRAIN)
    assert (cell.errors, cell.lines) == ([], [])
    for_training, for_evaluation, run = cell.displayed
    assert cell.seen(for_training).startswith("tokenising train_data \u2501")
    assert "99 documents" in cell.seen(for_training)
    assert "9 documents" in cell.seen(for_evaluation)
    assert cell.updated
    assert "step 1/6" in run["data"]["text/plain"]
    seen = cell.seen(run)
    assert "step 6/6" in seen
    assert "100%" in seen
    assert "validation" in seen
    assert "max/mean" in seen
    for output in [*cell.displayed, *cell.updated]:
        assert output["data"]["text/html"].startswith("<pre style=")
        assert "\x1b" not in output["data"]["text/plain"]


def test_a_picture_is_all_that_plot_shows(notebook: Notebook) -> None:
    cell = notebook.run("result.plot()")
    assert (cell.errors, cell.text) == ([], "")
    assert [sorted(output["data"]) for output in cell.displayed] == [["image/png", "text/plain"]]


def test_interrupting_the_kernel_ends_the_training_in_order(notebook: Notebook) -> None:
    cell = notebook.run(INTERRUPT)
    assert cell.errors == []
    assert "stopping after this step, left if it takes 5 s" in cell.text
    assert cell.displayed == []
    assert cell.lines[1].startswith("step 1/1000000 | loss ")  # plain lines were asked for


@pytest.mark.deep  # tests/functional/test_distributed_trainer.py has its results
def test_lines_of_other_processes_stand_below_the_cell(notebook: Notebook) -> None:
    cell = notebook.run(PROCESSES)
    assert cell.errors == []
    # The bar of the data appears where that takes half a second; the run itself draws none here.
    assert [it for it in cell.updated if "tokenising" not in str(it)] == []
    steps = [line.partition(" |")[0] for line in cell.lines if line.startswith("step")]
    assert steps == ["step 1/6", "step 6/6"]
    assert "\x1b" not in cell.text
