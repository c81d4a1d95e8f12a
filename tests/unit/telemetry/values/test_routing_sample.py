"""Samples read what they wrote, and refuse what cannot be one."""

import base64
import json
import zlib
from dataclasses import replace

import numpy as np
import pytest

from moe_megatron.errors import DataError
from moe_megatron.telemetry.values.routing_sample import (
    LayerPairs,
    RoutingSample,
    SampleHead,
    pairs_fit,
)
from moe_megatron.testing.written_run import LAYERS, NUM_EXPERTS, step_sample


def test_lines_read_what_they_wrote() -> None:
    sample = step_sample(3)
    head, *pairs = sample.lines()
    again = SampleHead.of_line(head)
    assert (again.step, again.layers, again.num_experts) == (3, LAYERS, NUM_EXPERTS)
    assert again.expert_bias is not None
    assert again.expert_bias.dtype == np.float32
    np.testing.assert_array_equal(again.expert_bias, sample.head.expert_bias)
    assert len(pairs) == len(LAYERS)
    for row, line in enumerate(pairs):
        found = LayerPairs.of_line(line, NUM_EXPERTS)
        assert found.layer == LAYERS[row]
        np.testing.assert_array_equal(found.together, sample.together[row])
        if row < len(LAYERS) - 1:
            np.testing.assert_array_equal(found.flow, sample.flow[row])
        else:
            assert found.flow is None


def test_model_without_bias_has_none() -> None:
    head = SampleHead(step=1, tokens=8, layers=(1,), num_experts=2)
    assert SampleHead.of_line(head.line()).expert_bias is None


def test_sample_is_empty_where_neither_tokens_nor_a_bias_were_there() -> None:
    head = SampleHead(step=1, tokens=0, layers=(1,), num_experts=2)
    nothing = RoutingSample(head=head, together=None, flow=None)
    assert nothing.is_empty
    assert list(nothing.lines()) == [head.line()]
    bias = np.zeros((1, 2), dtype=np.float32)
    assert not replace(nothing, head=replace(head, expert_bias=bias)).is_empty
    assert not replace(nothing, head=replace(head, tokens=3)).is_empty


def packed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


BOMB = packed(bytes(2**26))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"together": BOMB}, "together must be .2, 2. values of 4 bytes"),
        ({"together": packed(b"12")}, "together must be .2, 2. values"),
        ({"flow": packed(bytes(16))[:-8] + "AAAAAAA="}, "flow "),
        ({"together": "!"}, "together is not packed"),
        ({"together": [[1, 2], [3, 4]]}, "together must be a string"),
        ({"layer": 0}, "layer must be an integer >= 1"),
        ({"more": 1}, "unknown field"),
    ],
)
def test_lines_that_cannot_be_are_refused(fields: dict[str, object], problem: str) -> None:
    good = {"layer": 1, "together": packed(bytes(16)), "flow": None}
    LayerPairs.of_line(json.dumps(good).encode(), 2)
    with pytest.raises(DataError, match=problem):
        LayerPairs.of_line(json.dumps({**good, **fields}).encode(), 2)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"layers": [2, 1]}, "layers must be increasing"),
        ({"num_experts": 2**40}, "are too many"),
        ({"expert_bias": BOMB}, "expert_bias must be"),
        ({"step": 0}, "step must be an integer >= 1"),
    ],
)
def test_heads_that_cannot_be_are_refused(fields: dict[str, object], problem: str) -> None:
    good = json.loads(SampleHead(step=1, tokens=8, layers=(1, 2), num_experts=2).line())
    with pytest.raises(DataError, match=problem):
        SampleHead.of_line(json.dumps({**good, **fields}).encode())


def test_pairs_of_large_models_fit_and_of_huge_ones_do_not() -> None:
    assert pairs_fit(61, 256)
    assert pairs_fit(16, 1024)
    assert not pairs_fit(17, 1024)
    assert not pairs_fit(1, 1025)


def test_the_largest_line_of_a_layer_can_be_read_again() -> None:
    rng = np.random.default_rng(0)
    worst = rng.integers(0, 2**31, (1024, 1024), dtype=np.int32)  # what does not compress
    line = LayerPairs(layer=1, together=worst, flow=worst).line()
    assert len(line) < 16 * 2**20
    np.testing.assert_array_equal(LayerPairs.of_line(line, 1024).flow, worst)
