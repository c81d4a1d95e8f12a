"""What goes to the processes of a trainer and back, as files."""

from pathlib import Path

import pytest
import torch

from moe_megatron import MoEModel
from moe_megatron.config import RunConfig
from moe_megatron.errors import DataError, TopologyError
from moe_megatron.mcore.loop.engine import JobOutcome
from moe_megatron.run.folder import write_config
from moe_megatron.run.history import History
from moe_megatron.run.prepared_data import PreparedData
from moe_megatron.run.start import RunResult
from moe_megatron.telemetry.sinks.jsonl import METRICS_FILE
from moe_megatron.training.handover import Handover

DATA = PreparedData(
    paths=("1.0", "/data/a"),
    cache=Path("/data/indices"),
    vocab_size=64,
    end_of_document=3,
    validation_paths=("1.0", "/data/b"),
    tokenizer=Path("/data/tokenizer"),
)


def test_model_and_data_arrive_as_they_were(tmp_path: Path) -> None:
    model = MoEModel(hidden_size=16, num_experts=2, num_layers=1, vocab_size=64)
    Handover(tmp_path).give(model, DATA)
    taken, data = Handover(tmp_path).take()
    assert data == DATA
    assert all(torch.equal(it, model.state_dict()[name]) for name, it in taken.state_dict().items())


def test_result_comes_back(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    config = RunConfig()
    write_config(config, run_dir)
    (run_dir / METRICS_FILE).write_text("")
    outcome = JobOutcome(steps=7, interrupted=True, seconds=2.5, profile=None)
    result = RunResult(
        config=config, run_dir=run_dir, outcome=outcome, history=History(), checkpoint=run_dir / "c"
    )
    weights = {"a": torch.arange(6.0).view(2, 3).T}
    handover = Handover(tmp_path)
    assert handover.taken_back() is None
    handover.give_back(result, weights)
    back = handover.taken_back()
    assert back is not None
    assert (back[0].outcome, back[0].checkpoint) == (outcome, run_dir / "c")
    assert torch.equal(back[1]["a"], weights["a"])


@pytest.mark.parametrize("kind", [DataError, TopologyError])
def test_refusal_is_raised_again(kind: type[DataError], tmp_path: Path) -> None:
    Handover(tmp_path).refuse(kind("no such text; give another."))
    with pytest.raises(kind, match="no such text; give another"):
        Handover(tmp_path).taken_back()
