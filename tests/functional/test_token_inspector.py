"""The token inspector on trained models: what it answers is what the model itself decides."""

import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from moe_megatron.models import MoEModel
from moe_megatron.testing.programs import Program
from moe_megatron.webapp.run_facts import run_id
from moe_megatron.webapp.serving import DashboardOptions, DashboardServer

pytestmark = [pytest.mark.deep, pytest.mark.distributed, pytest.mark.timeout(600)]

TEXT = "def mean(values):\n    return <img src=x onerror=alert(1)> \u2603"


@pytest.fixture(scope="module")
def runs(moe: Callable[..., Program], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two checkpoints; beside it the last one as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("inspected")
    text = folder / "text.txt"
    text.write_text("def mean(values): return sum(values) / len(values)\n" * 2000)
    words = ("--train-iters", 4, "--save-interval", 2, "--num-processes", 1, "--data-path", text)
    program = moe(folder, "train", "--config", "test_tiny", *words, "--run-dir", "runs/first")
    assert program.end(200) == 0, program.output
    program = moe(folder, "convert", "runs/first", "exported")
    assert program.end(200) == 0, program.output
    return folder / "runs"


@pytest.fixture(scope="module")
def server(runs: Path) -> Iterator[DashboardServer]:
    options = DashboardOptions(folders=[runs], models=[runs.parent / "exported"], port=0)
    with DashboardServer(options) as server:
        yield server


def ask(server: DashboardServer, **fields: Any) -> tuple[int, Any]:
    headers = {"Content-Type": "application/json", "X-Requested-With": "moe-megatron"}
    request = urllib.request.Request(
        f"{server.url}api/inspect", json.dumps(fields).encode(), headers
    )
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def paths_of(folder: Path, text: str) -> dict[str, Any]:
    """The slow way: the model in this process, token by token."""
    model = MoEModel.from_pretrained(folder)
    assert model.tokenizer is not None
    ids = model.tokenizer.encode(text)
    with torch.no_grad():
        routing = model(torch.tensor([ids])).routing
    return {
        "tokens": [model.tokenizer.decode([it]) for it in ids],
        "layers": [info.layer for info in routing],
        "experts": [[row.tolist() for row in info.indices[0]] for info in routing],
        "weights": [[row.tolist() for row in info.weights[0]] for info in routing],
    }


def test_every_model_answers_as_it_decides(server: DashboardServer, runs: Path) -> None:
    run = run_id(runs / "first")
    [model] = json.load(urllib.request.urlopen(f"{server.url}api/models"))
    checkpoints = runs / "first" / "checkpoints"
    exported = runs.parent / "exported"
    found = {}
    for name, folder, fields in (
        ("first", checkpoints / "iter_0000002", {"run": run, "checkpoint": 2}),
        ("last", checkpoints / "iter_0000004", {"run": run, "checkpoint": None}),
        ("exported", exported, {"model": model["id"]}),
    ):
        status, answer = ask(server, **fields, text=TEXT)
        assert status == 200, answer
        expected = paths_of(folder, TEXT)
        for key in ("tokens", "layers", "experts"):
            assert answer[key] == expected[key], name
        assert torch.allclose(
            torch.tensor(answer["weights"]), torch.tensor(expected["weights"]), atol=1e-5
        )
        found[name] = answer
    assert found["last"]["weights"] != found["first"]["weights"]
    assert found["last"]["experts"] == found["exported"]["experts"]
    assert "<img" in "".join(found["last"]["tokens"])


def test_a_killed_model_is_loaded_again_and_a_long_text_is_refused(
    server: DashboardServer, runs: Path
) -> None:
    run = run_id(runs / "first")
    expected = ask(server, run=run, text=TEXT)
    process = server.inspector.process
    assert process is not None
    pid = process.pid
    os.kill(pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(pid)], timeout=1)
    assert ask(server, run=run, text=TEXT) == expected
    assert server.inspector.process is not process
    status, answer = ask(server, run=run, text="a b c d " * 2000)
    assert (status, "tokens, and at most 1,024 are" in answer["error"]) == (400, True), answer
    assert ask(server, run=run, text=TEXT) == expected


def test_it_ends_with_the_server_however_that_ends(
    moe: Callable[..., Program], runs: Path, tmp_path: Path
) -> None:
    for end in (signal.SIGINT, signal.SIGKILL):
        folder = tmp_path / end.name
        folder.mkdir()
        program = moe(folder, "dashboard", runs, "--port", 0, "--no-open")
        program.wait_for("dashboard  http")
        url = program.output.split("dashboard  ")[1].split()[0]
        body = json.dumps({"run": run_id(runs / "first"), "text": TEXT}).encode()
        headers = {"X-Requested-With": "moe-megatron"}
        request = urllib.request.Request(f"{url}api/inspect", body, headers)
        urllib.request.urlopen(request, timeout=300).close()
        [model] = psutil.Process(program.process.pid).children(recursive=True)
        assert "--tokens" in model.cmdline()
        program.process.send_signal(end)
        program.end(60)
        _, alive = psutil.wait_procs([model], timeout=60)
        assert not alive
        assert TEXT.split()[0] not in program.output


def test_a_model_that_cannot_be_loaded_says_why(server: DashboardServer, runs: Path) -> None:
    empty = runs / "first" / "checkpoints" / "iter_0000003"
    empty.mkdir()
    try:
        status, answer = ask(server, run=run_id(runs / "first"), checkpoint=3, text=TEXT)
    finally:
        empty.rmdir()
    assert status == 400
    assert "iter_0000003" in answer["error"]
    assert str(runs) not in answer["error"]
