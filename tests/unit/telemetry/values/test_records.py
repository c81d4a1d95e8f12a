import json
import math
from collections.abc import Callable

import pytest

from moe_megatron.errors import DataError
from moe_megatron.telemetry.values.records import EvalRecord, StepRecord


@pytest.mark.parametrize("loss", [None, math.inf, -math.inf, 0.1 + 0.2])
def test_step_json_round_trip_is_exact(
    make_step: Callable[..., StepRecord], loss: float | None
) -> None:
    record = make_step(7, loss=loss, skipped=True)
    text = json.dumps(record.to_json_dict(), allow_nan=False)
    assert StepRecord.from_json_dict(json.loads(text)) == record


def test_step_json_tells_nan_from_unknown(make_step: Callable[..., StepRecord]) -> None:
    data = make_step(loss=math.nan, grad_norm=None).to_json_dict()
    assert data["loss"] == "nan"
    back = StepRecord.from_json_dict(data)
    assert back.loss is not None
    assert math.isnan(back.loss)
    assert back.grad_norm is None


def test_memory_and_times_of_ranks_are_read_back_and_absent_where_not_measured(
    make_step: Callable[..., StepRecord],
) -> None:
    record = make_step(
        memory_bytes=2**40, peak_memory_bytes=2**41, expert_rank_seconds=(0.25, 0.125)
    )
    written = json.loads(json.dumps(record.to_json_dict()))
    assert (written["memory_bytes"], written["expert_rank_seconds"]) == (2**40, [0.25, 0.125])
    assert StepRecord.from_json_dict(written) == record
    assert written["peak_memory_bytes"] == 2**41
    assert (
        not {"memory_bytes", "peak_memory_bytes", "expert_rank_seconds"}
        & make_step().to_json_dict().keys()
    )
    for name, wrong in {
        "memory_bytes": 1.5,
        "peak_memory_bytes": "x",
        "expert_rank_seconds": ["long"],
    }.items():
        with pytest.raises(DataError, match=name):
            StepRecord.from_json_dict(written | {name: wrong})


def test_tokens_per_second(make_step: Callable[..., StepRecord]) -> None:
    assert make_step(tokens=100, step_seconds=0.5).tokens_per_second == 200
    assert make_step(step_seconds=0.0).tokens_per_second == 0.0


def test_perplexity_is_capped() -> None:
    assert EvalRecord(step=1, split="test", loss=2.0).perplexity == pytest.approx(math.e**2)
    assert EvalRecord(step=1, split="test", loss=1e6).perplexity == pytest.approx(math.e**20)
    assert math.isnan(EvalRecord(step=1, split="test", loss=math.nan).perplexity)


def test_eval_json_round_trip_is_exact() -> None:
    record = EvalRecord(step=3, split="validation", loss=1 / 3)
    assert EvalRecord.from_json_dict(json.loads(json.dumps(record.to_json_dict()))) == record


def test_what_is_measured_beside_a_loss_of_held_out_data_is_read_back() -> None:
    measures = {"reward_margin": 1 / 3, "reward_accuracy": 0.75}
    record = EvalRecord(step=3, split="validation", loss=0.5, measures=measures)
    written = json.loads(json.dumps(record.to_json_dict()))
    assert written["measures"] == measures
    assert EvalRecord.from_json_dict(written) == record
    with pytest.raises(DataError, match="reward_margin must be a number"):
        EvalRecord.from_json_dict(written | {"measures": {"reward_margin": "large"}})


def test_from_json_dict_wrong_type_names_the_field(make_step: Callable[..., StepRecord]) -> None:
    data = make_step().to_json_dict()
    with pytest.raises(DataError, match="skipped must be true or false, got 1"):
        StepRecord.from_json_dict(data | {"skipped": 1})
    with pytest.raises(DataError, match="split must be a string, got None"):
        EvalRecord.from_json_dict({"kind": "eval", "step": 1, "split": None, "loss": 1.0})
