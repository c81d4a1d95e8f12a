"""`moe-megatron quantize`, from a model to the table and both perplexities."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moe_megatron.cli.main import main
from moe_megatron.inference.quantization.methods import Quantized, register_method
from moe_megatron.inference.quantization.precision import Precision
from moe_megatron.inference.quantization.rtn import round_to_nearest
from moe_megatron.telemetry.values.profile import RoutingProfile
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
    profile = tmp_path / "routing_profile.json"
    RoutingProfile.empty(layers=(1, 2), num_experts=8, top_k=2).save(profile)
    mine = tmp_path / "mine.json"
    elsewhere = RoutingProfile.empty(layers=(1, 2, 3), num_experts=8, top_k=2)
    elsewhere.tokens, elsewhere.assigned[:], elsewhere.tokens_per_expert[:] = 4, 8, 1
    elsewhere.routers = {2: "0123456789abcdef"}
    elsewhere.save(mine)
    meant = "--counted-on-other-weights"
    assert main([*words, "--text", str(corpus), "--tokens", "40"]) == 0
    said = capsys.readouterr().out
    assert "experts      24  int4 g32" in said
    assert "routers       3       F32" in said
    assert "perplexity of 40 tokens: " in said
    assert f"written to {small}" in said
    for wrong, answer in (
        (words, "exists and is not empty; choose another folder, or replace it"),
        (["quantize", str(small), str(tmp_path / "twice")], "has been quantized already"),
        (["convert", str(small), str(tmp_path / "back")], "quantised by compressed-tensors"),
        (["cache", "fewer", str(small), str(corpus), "--keep", "4"], "is quantized, and its"),
        ([*words, "--overwrite", "--bits", "8", "--asymmetric"], "8 bits are symmetric"),
        ([*words, "--overwrite", "--profile", str(profile)], "give the profile of this model"),
        (
            [*words, "--overwrite", "--profile", str(mine)],
            f"counted on other weights than those of {folder}",
        ),
        (
            ["cache", "fewer", str(folder), str(corpus), "--keep", "4", "--profile", str(mine)],
            "other routers in layer 2",
        ),
        (
            ["convert", str(folder), str(tmp_path / "to"), "--keep-experts=4", f"--profile={mine}"],
            f"{mine} was counted on other weights",
        ),
        ([*words, "--overwrite", meant], "speaks of a --profile FILE; give both"),
        (["inspect", str(folder), meant], "belongs to --memory GB"),
        ([*words, "--overwrite", "--bits", "5"], "bits (5) must be 4 or 8"),
        ([*words, "--overwrite", "--group-size", "128"], "give 32"),
        ([*words, "--hot-share", "0.5"], "give both"),
        ([*words, "--text", str(tmp_path / "none")], "none cannot be read: No such file"),
        ([*words, "--text", str(folder / "model.safetensors")], "is no text in UTF-8"),
    ):
        before = sorted(it.stat().st_mtime_ns for it in small.iterdir())
        assert main(wrong) == 2
        assert answer in capsys.readouterr().err
        assert sorted(it.stat().st_mtime_ns for it in small.iterdir()) == before
    assert main([*words, "--overwrite", "--quiet", "--bits", "8"]) == 0
    assert "int8" in capsys.readouterr().out
    assert main([*words, "--overwrite", "--quiet", "--asymmetric"]) == 0
    assert "experts      24  int4 g32 asymmetric" in capsys.readouterr().out
    assert main([*words, "--overwrite", "--quiet", "--profile", str(mine), meant]) == 0
    assert "int8" in capsys.readouterr().out
    left = {it.name for it in tmp_path.iterdir()}
    assert left == {"model", "small", "routing_profile.json", "mine.json"}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_what_was_ended_leaves_nothing_in_the_way(number: int, tmp_path: Path) -> None:
    folder = save_model("olmoe", tmp_path / "model", hidden_size=64, intermediate_size=96)
    words = ["quantize", str(folder), str(tmp_path / "small"), "--quiet"]
    ready, tell = os.pipe()
    calls = []

    @register_method("stuck")
    def stuck(matrix: Tensor, wanted: Precision) -> Quantized:
        calls.append(1)
        if len(calls) == 30:  # 72 matrices
            os.write(tell, b"!")
            while True:
                time.sleep(0.01)  # a signal that came just before a sleep is answered after it
        return round_to_nearest(matrix, wanted)

    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        torch.set_num_threads(1)  # whose threads did not come along
        os._exit(main([*words, "--method", "stuck"]))
    assert os.read(ready, 1) == b"!"
    assert not (tmp_path / "small").exists()
    os.kill(child, number)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == (-signal.SIGKILL if number == signal.SIGKILL else 128 + signal.SIGINT)
    left = {it.name for it in tmp_path.iterdir() if not it.name.startswith(".")}
    assert left == {"model"}
    if number == signal.SIGINT:
        assert [it.name for it in tmp_path.iterdir()] == ["model"]
    assert main(words) == 0
    assert {it.name for it in tmp_path.iterdir()} == {"model", "small"}
