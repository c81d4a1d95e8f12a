import subprocess
import sys
from pathlib import Path

import pytest

from moe_megatron.cli.main import main
from moe_megatron.errors import MoEError

ROOT = Path(__file__).parents[3]
VERBS = (
    "adapter bench cache chaos convert dashboard data doctor finetune grafana inspect monitor pool "
    "quantize report serve slurm train uptime verify"
).split()
LISTED = f"Verbs are: {', '.join(VERBS[:-1])} and {VERBS[-1]}.\n"


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_without_a_verb_the_verbs_are_listed(words, capsys):
    assert main(words) == 0
    printed = capsys.readouterr().out
    for verb in VERBS:
        assert f"\n  {verb} " in printed
    assert "moe-megatron train --config demo_moe" in printed


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_ends_with_an_example(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: moe-megatron {verb} ")
    assert f"\n  moe-megatron {verb}" in printed.partition("example")[2]


def test_verb_of_another_distribution_is_one_file(tmp_path, monkeypatch, capsys):
    (tmp_path / "greeting.py").write_text(
        '"""`moe-megatron greet`: say hello."""\n\n'
        "def run(argv):\n    print('hello', *argv)\n    return 3\n"
    )
    about = tmp_path / "greeting-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[moe_megatron.verbs]\ngreet = greeting\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["greet", "you"]) == 3
    assert capsys.readouterr().out == "hello you\n"
    main([])
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["greet", "say", "hello"] in shown
    assert "greeting" in sys.modules
    del sys.modules["greeting"]


def test_unknown_verb_names_the_nearest(capsys):
    assert main(["tarin"]) == 2
    assert capsys.readouterr().err == (
        f"error: moe-megatron has no verb 'tarin'. Did you mean 'train'? {LISTED}"
    )


def test_unknown_verb_like_nothing_lists_all(capsys):
    assert main(["xyzzy"]) == 2
    assert capsys.readouterr().err == f"error: moe-megatron has no verb 'xyzzy'. {LISTED}"


def test_debug_shows_the_traceback(capsys):
    assert main(["report", "nowhere", "--debug"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback")
    assert "DataError: nowhere/metrics.jsonl: no such file" in printed


def test_interrupt_is_a_word_and_130(capsys, monkeypatch):
    def interrupted(words):
        raise KeyboardInterrupt

    monkeypatch.setattr("moe_megatron.cli.verbs.report.run", interrupted)
    assert main(["report", "run"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_program_error_is_not_hidden(monkeypatch):
    def broken(words):
        raise ZeroDivisionError

    assert not issubclass(ZeroDivisionError, MoEError)
    monkeypatch.setattr("moe_megatron.cli.verbs.report.run", broken)
    with pytest.raises(ZeroDivisionError):
        main(["report", "run"])


def test_reader_that_left_is_no_error():
    command = f"{sys.executable} -m moe_megatron train --print-config"
    answer = subprocess.run(
        f"{command} | head -n 1; echo ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert answer.stderr == ""
    assert answer.stdout.splitlines() == ["model:", "0"]


def test_name_that_is_too_long_is_said_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in (["convert", "n" * 5000, "out"], ["inspect", "n" * 5000], ["verify", "n" * 5000]):
        assert main(verb) == 2
        told = capsys.readouterr().err
        assert "File name too long" in told or "longer than a file's can be" in told
        assert len(told.splitlines()) == 1
        assert len(told) < 400
