import json

import pytest

from moe_megatron.cli.main import main
from moe_megatron.telemetry.values.records import StepRecord


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    record = StepRecord(
        step=1,
        loss=2.5,
        learning_rate=1e-3,
        grad_norm=1.0,
        step_seconds=0.5,
        tokens=10,
        total_steps=1,
    )
    (folder / "metrics.jsonl").write_text(json.dumps(record.to_json_dict()) + "\n")
    return folder


def test_report_lies_in_the_run_and_its_path_is_printed(run_dir, capsys):
    assert main(["report", str(run_dir)]) == 0
    assert capsys.readouterr().out == f"{run_dir / 'report.html'}\n"
    assert "<html" in (run_dir / "report.html").read_text()


def test_report_goes_where_it_is_wanted(run_dir, tmp_path, capsys):
    assert main(["report", str(run_dir), "--output", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'page.html'}\n"
    assert not (run_dir / "report.html").exists()


def test_folder_without_a_run_is_explained(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        f"error: {tmp_path}/metrics.jsonl: no such file, but a report needs it; give the "
        "directory of a run"
    )
    assert error.count("\n") == 1
