"""`moe-megatron quantize`, from a model to the table and both perplexities."""

from pathlib import Path

import pytest

from moe_megatron.cli.main import main
from moe_megatron.testing.expert_models import save_model


def test_a_model_becomes_a_smaller_one_and_says_what_that_costs(
    corpus: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from moe_megatron.text.loading import load_tokenizer

    known = load_tokenizer(str(tokenizer))
    sizes = {"hidden_size": 64, "intermediate_size": 96}
    folder = save_model("olmoe", tmp_path / "model", vocab_size=known.vocab_size, **sizes)
    known.save(folder)
    small = tmp_path / "small"
    words = ["quantize", str(folder), str(small)]
    assert main([*words, "--text", str(corpus), "--tokens", "40"]) == 0
    said = capsys.readouterr().out
    assert "experts      24  int4 g32" in said
    assert "routers       3       F32" in said
    assert "perplexity of 40 tokens: " in said
    assert f"written to {small}" in said
    for wrong, answer in (
        (words, "exists and is not empty; choose another folder, or replace it"),
        (["quantize", str(small), str(tmp_path / "twice")], "has been quantized already"),
        ([*words, "--overwrite", "--bits", "5"], "bits (5) must be 4 or 8"),
        ([*words, "--overwrite", "--group-size", "128"], "give 32"),
        ([*words, "--hot-share", "0.5"], "give both"),
        ([*words, "--text", str(tmp_path / "none")], "none"),
    ):
        before = sorted(it.stat().st_mtime_ns for it in small.iterdir())
        assert main(wrong) == 2
        assert answer in capsys.readouterr().err
        assert sorted(it.stat().st_mtime_ns for it in small.iterdir()) == before
    assert main([*words, "--overwrite", "--quiet", "--bits", "8"]) == 0
    assert "int8" in capsys.readouterr().out
