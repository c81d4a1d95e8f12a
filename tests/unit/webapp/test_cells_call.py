"""All experts at once, in bytes: within their steps, the numbers of each expert by itself."""

import base64
from pathlib import Path

import numpy as np
import pytest

from moe_megatron.testing.written_run import LAYERS, NUM_EXPERTS, write_run
from moe_megatron.webapp.calls import answer
from moe_megatron.webapp.run_reader import RunReader

FEW = 3


@pytest.fixture(scope="module", params=[NUM_EXPERTS, 300])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunReader:
    folder = tmp_path_factory.mktemp("runs") / "run"
    return RunReader(write_run(folder, 40, history=0, samples=10, num_experts=request.param))


def unpacked(text: str, kind: str = "u1") -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), kind)


def test_bytes_say_what_the_expert_alone_says(run: RunReader) -> None:
    experts = run.facts.experts
    found = answer(run, "cells", {"columns": "8", "partners": str(FEW)})
    size = (len(found["steps"]), len(LAYERS), experts)
    bias = unpacked(found["bias"]).reshape(size)
    kind = "u1" if experts <= 256 else "<u2"
    cells = (len(LAYERS), experts, FEW)
    partners = unpacked(found["partners"], kind).reshape(cells)
    shares, chances = (unpacked(found[it]).reshape(cells) for it in ("share", "null_share"))
    for row, layer in enumerate(LAYERS):
        low, high = found["low"][row], found["high"][row]
        for number in (0, 5, experts - 1):
            words = {"layer": str(layer), "expert": str(number), "columns": "8"}
            alone = answer(run, "expert", words)
            levels = bias[:, row, number]
            for byte, value in zip(levels.tolist(), alone["bias"], strict=True):
                assert (byte == 255) == (value is None)
                if value is not None:
                    assert abs(low + byte / 254 * (high - low) - value) <= (high - low) / 500
            for place, partner in enumerate(alone["partners"][:FEW]):
                assert partners[row, number, place] == partner["expert"]
                for bytes_, name in ((shares, "share"), (chances, "null_share")):
                    share = 2.0 ** ((int(bytes_[row, number, place]) - 255) / 16)
                    assert share == pytest.approx(partner[name], rel=0.025)
            assert (shares[row, number] > 0).sum() == min(FEW, len(alone["partners"]))


def test_no_question_makes_it_large(run: RunReader) -> None:
    found = answer(run, "cells", {"columns": "99999", "partners": "99999"})
    assert found["each"] <= 8
    assert len(found["bias"]) < 2**21


def test_without_samples_there_is_nothing(tmp_path: Path) -> None:
    found = answer(RunReader(write_run(tmp_path / "run", 3, history=0)), "cells", {})
    assert (found["steps"], found["each"], found["bias"]) == ([], 0, "")
