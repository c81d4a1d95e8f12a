import json

import pytest

from moe_megatron.cli.main import main
from moe_megatron.text.training import train_tokenizer

TEXTS = [f"Document {i}: the quick brown fox, x = {i * i}." for i in range(40)]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOE_MEGATRON_CACHE", str(tmp_path / "cache"))
    train_tokenizer(TEXTS, tmp_path / "tok", vocab_size=300)
    lines = [json.dumps({"body": text}) for text in TEXTS]
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    return tmp_path


def prepare(*words):
    return main(["data", "prepare", *words, "--output", "out/corpus", "--tokenizer", "tok"])


def test_prepare_then_inspect_count_the_same(place, capsys):
    assert prepare("text.jsonl", "--text-key", "body") == 0
    prepared = capsys.readouterr().out
    assert prepared.startswith(f"{place}/out/corpus: 40 documents, ")
    assert prepared.endswith(" tokens (uint16), 0 bad lines, 0 empty documents\n")
    assert main(["data", "inspect", "out/corpus"]) == 0
    inspected = capsys.readouterr().out
    assert inspected.startswith("out/corpus: 40 documents, ")
    assert inspected.split(" tokens")[0] == prepared.split(" tokens")[0].removeprefix(f"{place}/")


def test_wrong_text_key_is_explained(place, capsys):
    assert prepare("text.jsonl") == 2
    assert "error: 40 of 40 lines (100.00%) are malformed" in capsys.readouterr().err


def test_missing_source_is_explained(place, capsys):
    assert prepare("missing.jsonl") == 2
    assert capsys.readouterr().err.startswith(
        "error: data file missing.jsonl does not exist; check the path"
    )


def test_inspect_of_nothing_is_explained(place, capsys):
    assert main(["data", "inspect", "nothing"]) == 2
    assert capsys.readouterr().err == (
        "error: nothing is not an indexed dataset (nothing.bin and .idx are missing); give the "
        "prefix that was given to 'moe-megatron data prepare --output'.\n"
    )


@pytest.mark.parametrize("words", [[], ["prepare"], ["prepare", "text.jsonl"], ["inspct", "x"]])
def test_incomplete_command_names_its_help(words, capsys):
    assert main(["data", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: moe-megatron data")
    assert "--help` shows what it takes" in said


@pytest.mark.slow
def test_demo_says_where_it_is_and_how_large(capsys):
    # The user's cache: the demo may be there already, and building it costs ten seconds.
    assert main(["data", "demo"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["tokenizer", "code", "prose"]
    assert all(line.endswith(" tokens)") for line in lines[1:])
