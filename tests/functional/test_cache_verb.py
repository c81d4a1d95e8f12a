"""`moe-megatron cache`, from a text to the table."""

import json
from pathlib import Path

import pytest

from moe_megatron.cli.main import main
from moe_megatron.testing.expert_models import save_model


def test_a_text_becomes_a_trace_and_the_trace_a_table(
    corpus: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from moe_megatron.text.loading import load_tokenizer

    known = load_tokenizer(str(tokenizer))
    folder = save_model("olmoe", tmp_path / "model", vocab_size=known.vocab_size)
    known.save(folder)
    trace = tmp_path / "trace.jsonl"
    words = ["cache", "record", str(folder), str(corpus), "--output", str(trace)]
    assert main([*words, "--tokens", "40", "--window", "16"]) == 0
    assert "40 tokens, each with 2 of 8 experts in 3 layers" in capsys.readouterr().out
    assert main(["cache", "simulate", str(trace)]) == 0
    said = capsys.readouterr().out
    assert "model: 40 forward passes, the second half" in said
    assert "belady" in said
    assert "of what any policy could" in said
    assert main(["cache", "simulate", str(trace), "--gb", "1", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["experts"] == 24
    assert set(row["hit_rates"]) == {"lru", "lfu", "weighted_lru", "static", "belady"}

    for wrong, answer in (
        (["cache", "simulate", str(corpus)], "is no trace of experts"),
        (["cache", "simulate", str(trace), "--gb", "0"], "--gb (0) must be above 0"),
        ([*words, "--tokens", "1"], "--tokens (1) must be 2 or more"),
        ([*words[:2], str(tmp_path / "none"), *words[3:]], "none"),
    ):
        before = trace.read_bytes()
        assert main(wrong) == 2
        assert answer in capsys.readouterr().err
        assert trace.read_bytes() == before


def test_fewer_experts_are_judged_beside_chance_and_merging(
    corpus: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from moe_megatron.text.loading import load_tokenizer

    known = load_tokenizer(str(tokenizer))
    folder = save_model("mixtral", tmp_path / "model", vocab_size=known.vocab_size)
    known.save(folder)
    words = ["cache", "fewer", str(folder), str(corpus), "--tokens", "64", "--random", "1"]
    assert main([*words, "--keep", "8", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens"] == 32
    whole, *others = found["outcomes"]
    assert [it["choice"] for it in others] == 2 * [
        "frequency_based", "by_layer", "merged", "random 1"
    ]  # fmt: skip
    assert all(it["perplexity"] == whole["perplexity"] for it in others[:4])  # all 8 are kept
    assert all(it["bytes_saved"] * 2 == whole["nbytes"] for it in others[4:])
    assert others[4]["use"] <= others[5]["use"] < 1
    assert main([*words, "--keep", "4"]) == 0
    assert "use was counted in the 32 tokens before" in capsys.readouterr().out
    for wrong, answer in (
        (["--keep", "1"], "num_experts_to_load (1)"),
        (["--keep", "4", "--random", "0"], "--random (0) must be 1 or more"),
        (["--keep", "4", "--profile", str(tmp_path / "none")], "none"),
    ):
        assert main([*words, *wrong]) == 2
        assert answer in capsys.readouterr().err
