"""Tokens of experts read what they wrote, and refuse what cannot be theirs."""

import base64
import json
import zlib

import numpy as np
import pytest

from moe_megatron.errors import DataError
from moe_megatron.telemetry.values.top_tokens import MOST_TOKENS, TopTokens
from moe_megatron.testing.written_run import NUM_EXPERTS, step_sample


def test_line_reads_what_it_wrote() -> None:
    for top in step_sample(3, tokens=True).tokens:
        found = TopTokens.of_line(top.line(), NUM_EXPERTS)
        assert found.layer == top.layer
        for name in ("assigned", "ids", "counts", "in_layer"):
            assert getattr(found, name).dtype == np.int32
            np.testing.assert_array_equal(getattr(found, name), getattr(top, name))


def packed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"ids": packed(bytes(2**26))}, f"ids must be .8, {MOST_TOKENS}. values of 4 bytes"),
        ({"counts": packed(b"12")}, "counts must be"),
        ({"in_layer": "!"}, "in_layer is not packed"),
        ({"assigned": [1, 2]}, "assigned must be a string"),
        ({"layer": 0}, "layer must be an integer >= 1"),
        ({"num_experts": 4}, "num_experts must be 8, as in the sample"),
        ({"num_experts": 2**40}, "num_experts must be 8"),
    ],
)
def test_line_that_cannot_be_one_is_refused(fields: dict[str, object], problem: str) -> None:
    line = json.loads(step_sample(3, tokens=True).tokens[0].line())
    with pytest.raises(DataError, match=problem):
        TopTokens.of_line(json.dumps({**line, **fields}).encode(), NUM_EXPERTS)


def test_line_that_lacks_a_table_is_refused() -> None:
    line = json.loads(step_sample(3, tokens=True).tokens[0].line())
    del line["counts"]
    with pytest.raises(DataError, match="counts"):
        TopTokens.of_line(json.dumps(line).encode(), NUM_EXPERTS)
