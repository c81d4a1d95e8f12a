import json
from dataclasses import replace

import pytest

from moe_megatron.errors import DataError
from moe_megatron.telemetry.history.layout import COUNTS, SUMS, Description, HistoryLayout


def layout(num_layers: int = 2, num_experts: int = 4) -> HistoryLayout:
    layers = tuple(range(1, num_layers + 1))
    return HistoryLayout(
        layers=layers,
        num_experts=num_experts,
        top_k=2,
        quantities=("entropy", "margin"),
        sum_steps=64,
    )


@pytest.mark.parametrize(
    ("num_layers", "num_experts", "chunk"),
    [
        (1, 1, (1024, 1, 1)),
        (4, 8, (1024, 4, 8)),
        (61, 256, (128, 16, 256)),
        (2, 10**6, (16, 2, 10**6)),
    ],
)
def test_chunks_of_counts_are_about_two_mebibytes(
    num_layers: int, num_experts: int, chunk: tuple[int, ...]
) -> None:
    arrays = {array.name: array for array in layout(num_layers, num_experts).arrays()}
    assert arrays[COUNTS].chunk_shape == chunk
    assert all(1024 % array.chunk_steps == 0 for array in arrays.values())


def test_every_quantity_has_an_array_that_is_empty_where_nothing_was_measured() -> None:
    arrays = {array.name: array for array in layout().arrays()}
    assert set(arrays) == {
        "tokens_per_expert", "tokens_per_expert.sums", "assigned", "dropped", "entropy", "margin",
        "tokens",
    }  # fmt: skip
    assert arrays["margin"].metadata()["fill_value"] == "NaN"
    assert arrays["assigned"].dtype == "int64"


@pytest.mark.parametrize("sum_steps", [0, 64])
def test_description_survives_its_text(sum_steps: int) -> None:
    described = replace(layout(), sum_steps=sum_steps)
    description = Description(layout=described, first_step=5, last_step=4)
    assert Description.from_json(description.to_json()) == description
    assert (b"sum_steps" in description.to_json()) == bool(sum_steps)  # none in earlier versions


def test_chunks_of_sums_fit_into_memory() -> None:
    for num_experts, rows in ((4, 8), (256, 8), (2**20, 1)):
        arrays = {array.name: array for array in layout(2, num_experts).arrays()}
        assert arrays[SUMS].chunk_shape == (rows, 2, num_experts)
        assert arrays[SUMS].chunk_steps == rows * 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"zarr', "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        ("[]", "not a routing history"),
        ('{"zarr_format": 3, "attributes": {}}', "not a routing history"),
        ({"version": 1}, "version 1, this program reads 2"),
        ({"layers": [2, 1]}, "layers must be increasing"),
        ({"num_experts": 0}, "num_experts must be an integer >= 1, got 0"),
        ({"first_step": 3, "last_step": 1}, "last_step must be an integer >= 2, got 1"),
        ({"last_step": None}, "last_step must be an integer >= 0, got None"),
        ({"sum_steps": -1}, "sum_steps must be an integer >= 0, got -1"),
        ({"sum_steps": 2**20}, "sum_steps may be 65,536 at most, not 1,048,576"),
        ({"more": 1}, r"unknown field\(s\): more"),
        ({"quantities": "entropy"}, "quantities must be a list of strings, got 'entropy'"),
        ({"quantities": ["margin", "margin"]}, "quantities must be distinct"),
        ({"quantities": ["../margin"]}, r"'\.\./margin' cannot name a quantity"),
        ({"quantities": ["dropped"]}, "'dropped' cannot name a quantity"),
    ],
)
def test_damaged_descriptions_are_refused(text: str | bytes | dict, message: str) -> None:
    if isinstance(text, dict):
        group = json.loads(Description(layout=layout(), first_step=1, last_step=9).to_json())
        group["attributes"]["moe_routing_history"] |= text
        text = json.dumps(group)
    with pytest.raises(DataError, match=message):
        Description.from_json(text if isinstance(text, bytes) else text.encode())
