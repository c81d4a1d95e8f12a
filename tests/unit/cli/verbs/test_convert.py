"""The `convert` verb: both directions, its options, and what it says of wrong ones."""

import argparse
import re
from pathlib import Path

import pytest
import torch

from moe_megatron import MoEModel
from moe_megatron.cli.main import main
from moe_megatron.cli.verbs.convert import numbers, size
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.testing.tiny_models import save


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "mixtral"
    save("mixtral", folder, fused=False)
    return folder


def test_direction_follows_from_the_source(
    mixtral: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there, back = str(tmp_path / "megatron"), str(tmp_path / "back")
    assert main(["convert", str(mixtral), there, "--quiet"]) == 0
    out = capsys.readouterr().out
    assert re.match(r"mixtral: 0\.6 MB in [\d.]+ s \([\d.]+ GB/s\)\n", out)
    assert out.rstrip().endswith("megatron/release")
    assert main(["convert", there, back, "--layout", "fused", "--dtype", "bf16"]) == 0
    answer = capsys.readouterr()
    assert answer.out.rstrip().endswith("back")
    assert "export of release: 0.3 of 0.3 MB" in answer.err.replace(" MB of", " of")
    assert (tmp_path / "back" / "model.safetensors").is_file()


def test_dry_run_prints_the_plan(
    mixtral: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "x")
    assert main(["convert", str(mixtral), out, "--dry-run", "--experts", "0,2-3"]) == 0
    plan = capsys.readouterr().out
    assert "3 x decoder.layers.{layer}.mlp.router.weight [3, 48]" in plan
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{empty}", "x"], "is neither a Hugging Face model (config.json) nor a finished Megatron"),
        (["nowhere", "x"], "nowhere is not a folder; give the folder of a Hugging Face model"),
        (
            ["{mixtral}", "x", "--layout", "fused"],
            "--layout has no effect when the source is a",
        ),
        (["{mixtral}", "x", "--dtype", "int4"], "cannot be converted to 'int4'; use bf16, fp16 or"),
        (["{mixtral}", "x", "--experts", "7"], "experts [7] were requested, but the model has 4"),
    ],
)
def test_wrong_input_is_one_paragraph(
    words: list[str],
    message: str,
    mixtral: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    filled = [word.format(empty="empty", mixtral=mixtral) for word in words]
    assert main(["convert", *filled, "--quiet"]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert not (tmp_path / "x").exists()


def test_experts_are_kept_and_made_by_options(
    mixtral: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = RoutingProfile.empty(layers=(1, 2, 3), num_experts=4, top_k=2)
    profile.tokens_per_expert[:], profile.assigned[:], profile.tokens = [4, 1, 3, 2], 10, 5
    profile.save(tmp_path / "profile.json")
    kept = ["--keep-experts", "2", "--profile", str(tmp_path / "profile.json")]
    assert main(["convert", str(mixtral), str(tmp_path / "kept"), "--dry-run", *kept]) == 0
    assert "mlp.router.weight [2, 48]" in capsys.readouterr().out
    save("llama", tmp_path / "llama", fused=False)
    words = [str(tmp_path / "llama"), str(tmp_path / "x"), "--upcycle", "3", "--dry-run"]
    assert main(["convert", *words]) == 0
    assert "mlp.router.weight [3, 48]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--top-k", "2"], "--top-k has no effect without --upcycle; add it."),
        (["--granularity", "2"], "--granularity has no effect without --upcycle; add it."),
        (["--profile", "p"], "--profile has no effect without --keep-experts or --merge-experts"),
        (["--keep-experts", "2", "--merge-experts", "2"], "exclude each other; give only one"),
        (["--keep-experts", "9"], "9 experts"),
        (["--upcycle", "4"], "dense"),
    ],
)
def test_options_that_do_not_go_together(
    words: list[str],
    message: str,
    mixtral: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["convert", str(mixtral), str(tmp_path / "x"), *words]) == 2
    assert message in capsys.readouterr().err


def test_id_of_the_hub_that_is_nowhere_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["convert", "nobody/nothing", str(tmp_path / "x")]) == 2
    assert "nobody/nothing is not a local folder, and could not be" in capsys.readouterr().err


def test_selection_of_a_megatron_checkpoint_is_refused(
    mixtral: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = str(tmp_path / "megatron")
    main(["convert", str(mixtral), there, "--quiet"])
    assert main(["convert", there, str(tmp_path / "back"), "--layers", "0"]) == 2
    assert "--layers has no effect when the source is a Megatron" in capsys.readouterr().err


def test_a_grown_checkpoint_answers_as_before(
    mixtral: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there, grown, back = (str(tmp_path / name) for name in ("megatron", "grown", "back"))
    assert main(["convert", str(mixtral), there, "--quiet"]) == 0
    assert main(["convert", there, grown, "--grow", "8", "--quiet"]) == 0
    assert "each token visits all 2 copies of its experts" in capsys.readouterr().err
    assert main(["convert", grown, back, "--quiet"]) == 0
    tokens = torch.arange(40).view(2, 20)
    before, after = (MoEModel.from_pretrained(path) for path in (mixtral, back))
    assert (after.num_experts, after.experts_per_token) == (8, 4)
    torch.testing.assert_close(after(tokens).logits, before(tokens).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--grow", "4"], "4 experts are not more than the 4"),
        (["--grow", "6"], "has no routing_profile.json"),
        (["--grow", "8", "--keep-experts", "2"], "--grow makes more experts, --keep-experts and"),
        (["--grow", "8", "--layout", "fused"], "--layout has no effect when the source is changed"),
        (["--keep-experts", "2", "--noise", "0.1"], "--noise has no effect when the source is not"),
        (["--noise", "0.1"], "--top-k and --noise change a Megatron checkpoint only together with"),
        (["--grow", "8", "--noise", "3"], "the noise (3.0) must be a standard deviation"),
    ],
)
def test_a_change_that_cannot_be_made_is_explained(
    words: list[str],
    message: str,
    mixtral: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    there, target = str(tmp_path / "megatron"), tmp_path / "x"
    main(["convert", str(mixtral), there, "--quiet"])
    assert main(["convert", there, str(target), *words]) == 2
    assert message in capsys.readouterr().err
    assert not target.exists()
    assert main(["convert", str(mixtral), str(target), "--grow", "8"]) == 2
    assert "--grow has no effect when the source is a Hugging Face model" in capsys.readouterr().err


def test_lists_and_ranges_of_numbers() -> None:
    assert numbers("0,3,5-7") == (0, 3, 5, 6, 7)
    assert numbers("4") == (4,)


@pytest.mark.parametrize("text", ["", "a", "1,", "3-", "-1", "5-2", "1-2-3"])
def test_what_is_no_list_of_numbers_is_named(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"neither a number|runs backwards"):
        numbers(text)


@pytest.mark.parametrize(
    ("text", "nbytes"), [("5GB", 5 * 10**9), ("512MiB", 2**29), ("1000", 1000), ("2 GB", None)]
)
def test_sizes(text: str, nbytes: int | None) -> None:
    if nbytes is None:
        with pytest.raises(argparse.ArgumentTypeError, match="'2 GB' is not a size"):
            size(text)
    else:
        assert size(text) == nbytes
