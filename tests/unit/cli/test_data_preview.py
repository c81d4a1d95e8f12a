"""`moe-megatron data preview` and `data prepare --format`: what they print and refuse."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from moe_megatron.cli.main import main
from moe_megatron.cli.verbs.data import run
from moe_megatron.errors import ConfigError, DataError
from moe_megatron.text.demo import demo_tokenizer

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
LONG = "why " * 40


def row(asked: str, answered: str) -> dict[str, Any]:
    return {"instruction": asked, "output": answered}


@pytest.fixture
def chat(tmp_path: Path) -> Path:
    demo_tokenizer(vocab_size=512).save(tmp_path / "tok")
    (tmp_path / "tok" / "chat_template.jinja").write_text(TEMPLATE)
    rows = [row("Who?", "Me.\nAnd you\x1b[31m."), row(LONG, "So."), row("No", "")]
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps(it) + "\n" for it in rows))
    return path


def preview(chat: Path, *more: str) -> int:
    return run(["preview", str(chat), "--tokenizer", str(chat.parent / "tok"), *more])


def test_preview_marks_answers_and_counts_everything(chat, capsys):
    assert preview(chat, "--samples", "1", "--sequence-length", "64") == 0
    out = capsys.readouterr().out
    assert "format: alpaca\n" in out
    assert (
        "<user>Who?<|endoftext|>\n<assistant>{+Me.+}\n{+And you\\x1b[31m.<|endoftext|>+}\n" in out
    )
    assert "\x1b" not in out
    assert LONG not in out  # only one sample is shown
    assert "2 samples, " in out
    assert "longer than a row of 64: 1, which are cut there; " in out
    assert "without an answer before the cut, and left out: 1\n" in out
    assert "1 of 3 rows (33.33%) cannot be learned from" in out
    assert f"{chat}:3: no answer: the output is empty" in out


def test_preview_is_coloured_on_a_terminal_unless_told_not_to(chat, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    preview(chat)
    assert "<assistant>\x1b[30;42mMe.\x1b[0m\n" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    preview(chat)
    assert "\x1b" not in capsys.readouterr().out


def test_answers_after_which_a_model_would_not_stop_are_counted(chat, capsys):
    assert preview(chat) == 0
    assert "does not end with the token" not in capsys.readouterr().out
    template = chat.parent / "tok" / "chat_template.jinja"
    template.write_text(TEMPLATE.replace("{{ eos_token }}", "."))
    assert preview(chat) == 0
    told = "samples whose last answer does not end with the token that ends a text: 2; "
    assert told in capsys.readouterr().out


def test_prepared_data_is_previewed_and_inspected_alike(chat, capsys):
    common = ["--tokenizer", str(chat.parent / "tok"), "--max-bad-line-ratio", "0.5"]
    prefix = str(chat.parent / "ready")
    words = ["prepare", str(chat), "--format", "instructions", "--output", prefix]
    assert run([*words, *common]) == 0
    assert run(["inspect", prefix]) == 0
    made, seen = capsys.readouterr().out.splitlines()[1:]
    assert made.partition(" (")[0] == seen.partition(" (")[0]
    assert "2 samples, " in seen
    assert " of them learned" in seen
    preview(chat)
    of_file = capsys.readouterr().out.partition("\n")[2].partition("1 of 3 rows")[0]
    preview(Path(prefix))
    assert capsys.readouterr().out == of_file


def test_mistakes_are_refused_before_anything_is_written(chat, tmp_path):
    with pytest.raises(ConfigError, match=r"--samples .0. must be at least 1"):
        preview(chat, "--samples", "0")
    with pytest.raises(DataError, match="no format of instruction data called 'alpacca'"):
        preview(chat, "--format", "alpacca")
    with pytest.raises(DataError, match=r"no row of .* is a conversation .*no field 'prompt'"):
        preview(chat, "--format", "completion")
    with pytest.raises(DataError, match="has no chat template"):
        run(["preview", str(chat), "--tokenizer", "demo"])
    with pytest.raises(DataError, match="no chat template"):
        run(["prepare", str(chat), "--format", "alpaca", "--output", str(tmp_path / "out")])
    assert not list(tmp_path.glob("out*"))


def test_a_mistake_ends_the_command_with_two(chat, capsys):
    assert main(["data", "preview", str(chat), "--tokenizer", "demo"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
