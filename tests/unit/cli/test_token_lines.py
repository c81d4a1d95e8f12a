"""A line of text in, a line of experts out; what is wrong is a line, too."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moe_megatron.cli import token_lines
from moe_megatron.cli.token_lines import answer_lines
from moe_megatron.errors import CheckpointError, DataError
from moe_megatron.platform.choice import Choice


def ask(text: str) -> dict[str, Any]:
    if text == "long":
        raise DataError("too long.")
    if text == "large":
        raise RuntimeError("not enough memory\nand a stack of C++")
    return {"tokens": list(text)}


def test_each_line_is_answered_whatever_the_one_before_was() -> None:
    answers: list[Any] = []
    lines = [b'"long"\n', b"{\n", b"\xff\n", b"[1]\n", b'"\\ud800"\n', b'"large"\n', b'"ab"\n']
    answer_lines(lines, ask, answers.append)
    assert answers[0] == {"error": "too long."}
    no_text = "a line must hold one text as a JSON string"
    assert all(no_text in answer["error"] for answer in answers[1:5])
    assert answers[5]["error"].endswith("this text: not enough memory; give a shorter one.")
    assert answers[6] == {"tokens": ["a", "b"]}
    assert len(answers) == len(lines)


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(2**20))
    monkeypatch.setattr(
        token_lines, "available_memory", lambda: Choice(value=2**20 - 1, reason="what is free")
    )
    with pytest.raises(CheckpointError, match=r"0\.0 GiB are available \(what is free\)"):
        token_lines._load(tmp_path)


def test_a_folder_that_is_none_is_one_line(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "moe_megatron", "inspect", tmp_path / "none", "--tokens"]
    answer = subprocess.run(words, input="", capture_output=True, text=True, timeout=60)
    [line] = answer.stdout.splitlines()
    assert "is no folder; give the folder of a checkpoint" in json.loads(line)["error"]
    assert answer.returncode == CheckpointError.exit_code
