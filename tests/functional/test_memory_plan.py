"""`moe-megatron inspect --memory`: what fits, how fast, and what to do."""

import json
from pathlib import Path

import pytest
import torch

from moe_megatron.cli.main import main
from moe_megatron.testing.expert_models import save_model


def test_a_memory_is_answered_with_plans(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_model("mixtral", tmp_path / "model", torch.bfloat16)
    words = ["inspect", str(folder), "--memory"]
    assert main([*words, "50"]) == 0
    said = capsys.readouterr().out
    assert "24 experts, top-2 of 8 in 3 layers" in said
    assert "chance, as nothing is known" in said
    assert "all of it fits as it is" in said or "moe-megatron quantize" in said
    assert main([*words, "0.001", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [it["slots"] for it in found["plans"]] == [0, 0]
    assert found["plans"][0]["tokens_per_second"] is None
    assert found["plans"][0]["nbytes"] > found["program"] > found["memory"]
    assert main([*words, "0.001"]) == 0
    assert "Nothing fits: " in capsys.readouterr().out

    dense = save_model("llama", tmp_path / "dense")
    for wrong, answer in (
        ([*words, "-1"], "memory (-1.0) must be a number, greater than 0"),
        ([*words, "1", "--context", "-1"], "context (-1)"),
        (["inspect", str(folder), "--trace", "none"], "--trace belongs to --memory GB"),
        ([*words, "1", "--trace", str(tmp_path / "none")], "none"),
        (["inspect", str(dense), "--memory", "1"], "is a model without experts"),
    ):
        assert main(wrong) == 2, wrong
        assert answer in capsys.readouterr().err
