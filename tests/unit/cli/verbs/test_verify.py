"""`moe-megatron verify` as a user calls it: exit codes, text and JSON."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from moe_megatron.checkpoint.convert import Execution, import_checkpoint
from moe_megatron.cli.main import main
from moe_megatron.cli.verbs.verify import UNJUDGED
from moe_megatron.platform.device import DEVICE_VARIABLE
from moe_megatron.testing.tiny_models import save


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verb chooses the CPU for its whole process; this one goes on afterwards."""
    monkeypatch.setenv(DEVICE_VARIABLE, "cpu")


def _save_olmoe(folder: Path, *, seed: int) -> None:
    """A model with a setting that Megatron does not compute, at a value that changes nothing."""
    save("olmoe", folder, fused=False, seed=seed)
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "clip_qkv": 1e6}))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("verify")
    _save_olmoe(folder / "hf", seed=0)
    import_checkpoint(folder / "hf", folder / "megatron", execution=Execution(progress=False))
    return str(folder / "hf"), str(folder / "megatron")


def test_model_with_a_limit_is_not_judged(
    pair: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", *pair, "--length", "8", "--quiet"]) == UNJUDGED == 3
    out = capsys.readouterr().out
    assert "structure  every tensor has a counterpart of the same shape" in out
    assert "weights    bitwise identical" in out
    assert "logits     not judged (fp32, 16 positions): max difference" in out
    assert "note       Megatron does not clip queries, keys and values" in out
    assert out.endswith(
        "weights equal; logits not judged: Megatron does not clip queries, keys and values "
        "(clip_qkv)\n"
    )


def test_what_was_not_asked_for_is_no_failure(
    pair: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", *pair, "--no-logits", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert out.endswith("weights equal; logits not compared: this was not requested\n")


def test_model_that_is_the_same_is_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save("olmoe", tmp_path / "hf", fused=False)
    folders = [str(tmp_path / "hf"), str(tmp_path / "megatron")]
    import_checkpoint(*folders, execution=Execution(progress=False))
    assert main(["verify", *folders, "--length", "8", "--quiet"]) == 0
    assert capsys.readouterr().out.endswith("\nthe same\n")
    assert main(["verify", *folders, "--length", "8", "--quiet", "--precision=bf16"]) == UNJUDGED
    told = capsys.readouterr().out
    assert told.endswith("weights equal; logits not judged: rounding dominates in bf16\n")


@pytest.mark.parametrize("name", ["config", "model"])
def test_model_that_transformers_cannot_build_is_not_judged(
    name: str, pair: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    import transformers

    def refuse(*_: object, **__: object) -> None:
        raise KeyError("not known here")

    auto = transformers.AutoConfig if name == "config" else transformers.AutoModelForCausalLM
    monkeypatch.setattr(auto, "from_pretrained" if name == "config" else "from_config", refuse)
    assert main(["verify", *pair, "--quiet"]) == UNJUDGED
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("weights equal; logits not compared: transformers cannot build the")
    assert "('not known here'); install a version" in last


def test_another_model_is_a_mismatch(
    pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _save_olmoe(tmp_path / "other", seed=1)
    assert main(["verify", str(tmp_path / "other"), pair[1], "--no-logits", "--quiet"]) == 1
    out = capsys.readouterr().out
    assert "numbers differ, by up to" in out
    assert "logits     not compared: this was not requested" in out
    assert out.endswith("NOT the same\n")


def test_json_is_for_programs(pair: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", *pair, "--no-logits", "--json", "--quiet"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["family"] == "olmoe"
    assert told["passed"] is True
    assert told["logits"] is None


def test_an_unreadable_folder_is_an_error(
    pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", pair[0], str(tmp_path)]) == 2
    assert "give the folder of a checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["0", "x", "-1"])
def test_lengths_are_whole_numbers(
    value: str, pair: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", *pair, f"--length={value}"]) == 2
    assert "is not a whole number of at least 1" in capsys.readouterr().err


def test_one_folder_is_checked_byte_by_byte_and_can_be_vouched_for_again(
    pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "megatron"
    shutil.copytree(pair[1], folder)
    assert main(["verify", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder / 'release'}: valid\n"
    with (folder / "release" / "config.yaml").open("a") as file:
        file.write("# mine\n")
    assert main(["verify", str(folder), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["state"] == "damaged"
    assert "config.yaml has grown" in told["problems"][0]
    assert main(["verify", str(folder / "release"), "--seal"]) == 0
    (folder / "release" / "checksums.json").unlink()
    capsys.readouterr()
    assert main(["verify", str(folder)]) == 1
    assert "unverified\n  it has no checksums.json" in capsys.readouterr().out
    assert main(["verify", *pair, "--seal"]) == 2
    assert "--seal takes one folder" in capsys.readouterr().err
