import sys

from moe_megatron.data import progress
from moe_megatron.data.progress import show_progress
from moe_megatron.live import bar


def test_without_a_terminal_one_line_sums_up(capsys):
    with show_progress("tokenising x", 2_000_000) as report:
        report(1_000_000, 5)
        report(2_000_000, 1234)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("tokenising x: 2.0 of 2.0 MB, 1,234 documents, ")
    assert captured.err.count("\n") == 1


def test_long_work_prints_a_line_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    with show_progress("x", 0) as report:
        report(1_000_000, 1)
    assert capsys.readouterr().err.startswith("x: 1.0 MB, 1 documents")


def test_on_a_terminal_a_bar_goes_to_stderr(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(bar, "PATIENCE_SECONDS", 0.0)
    with show_progress("tokenising x", 2_000_000) as report:
        report(2_000_000, 1234)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "1,234 documents" in captured.err


def test_work_that_is_done_at_once_shows_no_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(bar, "PATIENCE_SECONDS", 3600.0)
    with show_progress("tokenising x", 2_000_000) as report:
        report(2_000_000, 1234)
    assert capsys.readouterr().err == ""


def test_switched_off_prints_nothing(capsys):
    with show_progress("x", 1, enabled=False) as report:
        report(1, 1)
    assert capsys.readouterr().err == ""
