"""A trace is the same after it was written, and a file that is none is refused."""

import json
from pathlib import Path

import pytest

from moe_megatron.errors import DataError
from moe_megatron.inference.cache.trace import FORMAT, Trace, Traced

ABOUT = Traced(layers=2, experts=4, top_k=2, expert_bytes=64, model="a")
TRACE = Trace(ABOUT, (((0, 1), (2, 3)), ((1, 2), (0, 3)), ((0, 1), (1, 3))))
HEAD = json.dumps({"format": FORMAT, "layers": 2, "experts": 4, "top_k": 2, "expert_bytes": 64})


def test_written_and_read_again_is_the_same(tmp_path: Path) -> None:
    TRACE.save(tmp_path / "trace.jsonl")
    assert Trace.load(tmp_path / "trace.jsonl") == TRACE
    assert TRACE.counts()[0, 1] == 3
    first, second = TRACE.halves()
    assert (len(first.passes), len(second.passes)) == (1, 2)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "is empty; `moe-megatron cache record` writes traces"),
        (["nothing"], "is no trace of experts"),
        (['{"format": "other"}'], 'its first line must say {"format": "moe-trace-1"}'),
        ([HEAD.replace("64", '"64"')], "expert_bytes ('64') must be a whole number above 0"),
        ([HEAD.replace('"top_k": 2', '"top_k": true')], "top_k (True) must be a whole number"),
        ([HEAD, "[[0, 1]]"], ":2 is no forward pass of a model with 2 layers of 4 experts"),
        ([HEAD, "[[0, 1], [2, 3]]", "[[0, 1], [2, 4]]"], ":3 is no forward pass"),
        ([HEAD, "[[0, 0], [1, 2]]"], ":2 is no forward pass"),
        ([HEAD, "[[0, -1], [1, 2]]"], ":2 is no forward pass"),
        ([HEAD, "[0, [[[[[1]]]]]]"], ":2 is no forward pass"),
        ([HEAD, "[[0, 1], [2, [3]]]"], ":2 is no forward pass"),
        ([HEAD, "[" * 5000], "is no trace of experts"),
    ],
)
def test_what_is_no_trace_is_refused(lines: list[str], said: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(DataError) as error:
        Trace.load(path)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        Trace.load(tmp_path)
    with pytest.raises(DataError, match="has no two halves"):
        Trace(ABOUT, TRACE.passes[:1]).halves()
