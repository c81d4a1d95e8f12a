"""A run whose routers have collapsed says so at its end, and what to change."""

from typing import Any

import numpy as np
import pytest

from moe_megatron.config import RunConfig, apply_overrides
from moe_megatron.run.collapse import collapse_warning
from moe_megatron.run.history import RECENT, History
from moe_megatron.telemetry.values.collapse import collapsed_layers
from moe_megatron.telemetry.values.records import StepRecord
from moe_megatron.telemetry.values.snapshot import RoutingSnapshot

EVEN, COLLAPSED = [25] * 8, [100, 98, 2, 0, 0, 0, 0, 0]


def config(**fields: Any) -> RunConfig:
    return apply_overrides(RunConfig(), {"moe.num_experts": 8, **fields})


def history(*steps: list[list[int]]) -> History:
    found = History()
    for number, layers in enumerate(steps, start=1):
        counts = np.array(layers, dtype=np.int64)
        snapshot = RoutingSnapshot(
            step=number,
            tokens=100,
            top_k=2,
            layers=tuple(range(1, len(layers) + 1)),
            tokens_per_expert=counts,
            assigned=counts.sum(axis=1),
            dropped=np.zeros(len(layers), dtype=np.int64),
            per_layer={},
        )
        record = StepRecord(
            step=number,
            loss=1.0,
            learning_rate=1e-3,
            grad_norm=1.0,
            step_seconds=1.0,
            tokens=100,
            total_steps=len(steps),
        )
        found.step(record, snapshot)
    return found


@pytest.mark.parametrize(
    ("counts", "top_k", "expected"),
    [
        (EVEN, 2, False),
        (COLLAPSED, 2, True),
        ([60, 50, 40, 30, 10, 5, 3, 2], 2, False),  # uneven, and alive
        ([200, 0, 0, 0, 0, 0, 0, 0], 1, True),
        ([100, 20, 20, 20, 20, 10, 5, 5], 2, True),  # one expert sees every token
        ([100, 100, 0, 0], 2, True),
        ([100, 100, 100, 100, 0, 0, 0, 0], 4, True),
        ([100] * 7 + [0], 7, False),  # there is hardly anything to choose
        ([100, 100], 2, False),
        ([100], 1, False),
        ([0] * 8, 2, False),
    ],
)
def test_collapse_is_told_from_unevenness(counts: list[int], top_k: int, expected: bool) -> None:
    assert collapsed_layers(np.array([counts], dtype=np.int64), top_k).tolist() == [expected]


def test_a_collapsed_layer_is_named_with_what_to_change() -> None:
    warning = collapse_warning(config(), history([EVEN, COLLAPSED]))
    assert warning == (
        "the routers of layer 2 have collapsed onto few experts: in steps 1 to 1 one of 8 got 50% "
        "of a layer's assignments, where 12% is even. Experts without tokens learn nothing. Raise "
        "moe.aux_loss_coef from 0.01 to 0.02; start a small model from larger weights "
        "(model.init_std 0.05 in place of 0.02); lower the learning rate, or train longer if it "
        "has just begun."
    )


def test_what_is_advised_is_not_what_the_run_has() -> None:
    many = history([COLLAPSED] * 9)
    assert "layers 1, 2, 3, 4, 5 and 4 more have" in collapse_warning(config(), many)
    strong = config(**{"moe.aux_loss_coef": 0.1, "model.init_std": 0.05})
    assert "from 0.1 to 0.2; lower the learning rate" in collapse_warning(strong, many)
    without = config(**{"moe.load_balancing": "none"})
    assert "set moe.load_balancing to aux_loss" in collapse_warning(without, many)


def test_frozen_routers_are_to_be_trained_and_loaded_weights_are_not_to_be_drawn() -> None:
    collapsed = history([EVEN, COLLAPSED])
    frozen = ({"finetune.freeze": ["router"]}, {"finetune.train": ["experts"]}, {"adapter.rank": 4})
    for fields in frozen:
        warning = collapse_warning(config(**fields), collapsed)
        assert "nothing. Routers are frozen in this run" in warning, fields
    for fields in (
        {"finetune.freeze": ["router@2"]},
        *({"finetune.train": ["router"], **it} for it in frozen[2:]),
    ):
        assert "Raise moe.aux_loss_coef" in collapse_warning(config(**fields), collapsed), fields
    loaded = collapse_warning(config(**{"checkpoint.load": "weights"}), collapsed)
    assert "from 0.01 to 0.02; lower the learning rate" in loaded


def test_routers_that_have_recovered_are_not_spoken_of() -> None:
    recovered = history(*[[COLLAPSED]] * 20, *[[EVEN]] * RECENT)
    assert collapse_warning(config(), recovered) == ""
    assert collapse_warning(config(), History()) == ""
